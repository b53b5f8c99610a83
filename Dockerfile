# The service without root, with torch's CPU build and the model all-MiniLM-L6-v2 inside.
#
#   docker build -t memementor-embedding-service .
#   docker run -p 8000:8000 --env-file .env -v embeddings-cache:/var/cache/huggingface \
#     -v converted-cache:/var/cache/memementor-embeddings memementor-embedding-service
#
# Keys and tokens come in when it runs; none belongs in here. `docker stop` kills after 10 s: -t 35 gives requests their
# GRACEFUL_TIMEOUT_S.

FROM python:3.11-slim AS packages
# For traces, since the image has no pip to bring packages later:
# `--build-arg EXTRA_PACKAGES="opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2"`
ARG EXTRA_PACKAGES=
# Of all the bytecode that pip would compile, 300 MB, the service uses a quarter, which the import below writes.
ENV PIP_NO_CACHE_DIR=1 PIP_COMPILE=0
WORKDIR /build
# Nothing but what decides which packages there are, so that a change of code finds this stage in the build cache.
COPY requirements.txt ./
COPY scripts/install.sh scripts/
# torch's headers and tests are 145 MB, and other packages' tests some more. The import writes bytecode, which the
# service's user may not: without it a start takes 13 s instead of 5. `import openvino` would report itself to an analytics
# host unless openvino_telemetry cannot be imported.
RUN python -m venv /opt/venv \
    && scripts/install.sh /opt/venv/bin/python requirements.txt \
    && { [ -z "$EXTRA_PACKAGES" ] || /opt/venv/bin/python -m pip install --quiet -c requirements.txt $EXTRA_PACKAGES; } \
    && /opt/venv/bin/python -m pip uninstall --quiet --yes pip \
    && rm -rf /opt/venv/lib/python3*/site-packages/torch/include /opt/venv/lib/python3*/site-packages/torch/test \
    && find /opt/venv/lib -type d -name tests -prune -exec rm -rf {} + \
    && /opt/venv/bin/python -c "import sys; sys.modules['openvino_telemetry'] = None; import sentence_transformers, openvino"

FROM python:3.11-slim
# A fixed number, since it owns the files in the volume, and since Kubernetes' runAsNonRoot believes no name.
RUN useradd --uid 10001 --create-home service \
    && mkdir -p /var/cache/huggingface /var/cache/memementor-embeddings \
    && chown 10001 /var/cache/huggingface \
    && chown 10001 /var/cache/memementor-embeddings
# At the path where it was made: its scripts name their interpreter.
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
# The start period lets a first start download its models; one that fails ends by itself. The settings read PORT, since
# --env-file leaves quotes around it, and HTTP_PROXY is for downloads alone.
HEALTHCHECK --interval=15s --timeout=10s --start-period=300s CMD ["python", "-c", "\
from urllib.request import ProxyHandler, build_opener; \
from embedding_api.settings import load_settings; \
build_opener(ProxyHandler({})).open(f'http://127.0.0.1:{load_settings().port}/health/ready', timeout=8)"]
# No shell in between: signals reach Gunicorn, which finds the rest in gunicorn.conf.py.
CMD ["gunicorn"]
