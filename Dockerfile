# An image of the service with torch's CPU build and the model all-MiniLM-L6-v2. The service does not run as root.
#
#   docker build -t memementor-embedding-service .
#   docker run -p 8000:8000 --env-file .env -v embeddings-cache:/var/cache/huggingface \
#     -v converted-cache:/var/cache/memementor-embeddings memementor-embedding-service
#
# Give keys and tokens to the container; never put one into the image. `docker stop` kills after 10 s. With -t 35,
# requests have their GRACEFUL_TIMEOUT_S.

FROM python:3.11-slim AS packages
# Packages for traces go here, because the image has no pip to install them later:
# `--build-arg EXTRA_PACKAGES="opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2"`
ARG EXTRA_PACKAGES=
# pip would compile 300 MB of bytecode. The service uses a quarter of it, and the import below writes that part.
ENV PIP_NO_CACHE_DIR=1 PIP_COMPILE=0
WORKDIR /build
# Only the files that determine the packages, so that a change of code does not rebuild this stage.
COPY requirements.txt ./
COPY scripts/install.sh scripts/
# torch's headers and tests have 145 MB, and other packages have tests too. The import writes bytecode, because the
# service's user may not write it, and a start without bytecode takes 13 s instead of 5. Without openvino_telemetry,
# `import openvino` sends no report to an analytics host.
RUN python -m venv /opt/venv \
    && scripts/install.sh /opt/venv/bin/python requirements.txt \
    && { [ -z "$EXTRA_PACKAGES" ] || /opt/venv/bin/python -m pip install --quiet -c requirements.txt $EXTRA_PACKAGES; } \
    && /opt/venv/bin/python -m pip uninstall --quiet --yes pip \
    && rm -rf /opt/venv/lib/python3*/site-packages/torch/include /opt/venv/lib/python3*/site-packages/torch/test \
    && find /opt/venv/lib -type d -name tests -prune -exec rm -rf {} + \
    && /opt/venv/bin/python -c "import sys; sys.modules['openvino_telemetry'] = None; import sentence_transformers, openvino"

FROM python:3.11-slim
# A fixed number: this user owns the files in the volumes, and Kubernetes' runAsNonRoot accepts only a number.
RUN useradd --uid 10001 --create-home service \
    && mkdir -p /var/cache/huggingface /var/cache/memementor-embeddings \
    && chown 10001 /var/cache/huggingface \
    && chown 10001 /var/cache/memementor-embeddings
# The path is the same as in the first stage, because the scripts of an environment contain the path of their Python.
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
COPY wsgi.py gunicorn.conf.py ./
COPY embedding_api embedding_api/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/cache/huggingface \
    CACHE_DIR=/var/cache/memementor-embeddings \
    HOST=0.0.0.0 \
    PORT=8000
EXPOSE 8000
VOLUME /var/cache/huggingface /var/cache/memementor-embeddings
USER 10001
# The start period is long enough for a first start to download models. A start that fails ends by itself. The check
# reads PORT through the settings, because --env-file does not remove quotes. It uses no proxy, because HTTP_PROXY is
# for downloads only.
HEALTHCHECK --interval=15s --timeout=10s --start-period=300s CMD ["python", "-c", "\
from urllib.request import ProxyHandler, build_opener; \
from embedding_api.settings import load_settings; \
build_opener(ProxyHandler({})).open(f'http://127.0.0.1:{load_settings().port}/health/ready', timeout=8)"]
# Docker runs Gunicorn without a shell, so that signals reach it. Gunicorn reads its options from gunicorn.conf.py.
CMD ["gunicorn"]
