"""Everything that can go wrong, by name. No HTTP numbers: `web/envelope.py` holds those.

ServiceError
├── StartError                        the service cannot start; the message is for its operator
│   ├── SettingsError                 a setting is wrong, or two contradict each other
│   ├── AddressError                  the service cannot listen where it should
│   ├── DeviceNotFoundError           the machine has no such device
│   └── ModelLoadError                which model, from where, why, what to do
├── RequestError                      the caller can mend it; the message says how
│   ├── InvalidBodyError              the body breaks off, or its chunks are malformed
│   ├── InvalidJsonError              not JSON, or not an object
│   ├── UnsupportedEncodingError      a Content-Encoding that is not understood
│   ├── InvalidFieldError             what a schema alone can judge; carries its own code
│   ├── InvalidKeyError               no key, or a wrong one
│   ├── ModelNotFoundError            the request names a model that is not served
│   ├── ModelPageNotFoundError        the same, asked for by its address
│   ├── UnsupportedDimensionsError    more dimensions than the model has
│   ├── UnknownPromptError            a prompt that the model does not have
│   ├── ContextLengthExceededError    too many tokens, and truncation was declined
│   ├── EmptyTextError                a text of which the model's tokenizer leaves nothing
│   ├── TokenIdsNotAcceptedError      token ids where texts are wanted, or ids the model does not know
│   ├── UnsupportedTokenError         a token that the model has no row for
│   ├── OverloadedError               more work than the queue takes; says when to come again
│   └── ClientGoneError               the client closed the connection before it was answered
└── EngineError                       a fault of ours
    ├── NotReadyError                 the engine does not answer
    ├── DeadlineExceededError         it was not answered in the time it had
    └── NonFiniteVectorError          the model gave NaN or infinity
"""


class ServiceError(Exception):
    """Root of the tree.

    Args:
        message: What is wrong, the value, the rule and the cure, in one line. Never a text or a key.
        param: Path of the field at fault, such as `input[3]`, or None.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class StartError(ServiceError):
    """The service cannot start."""

    @property
    def line(self) -> str:
        """What its operator sees, in one line; see `log.refuse`."""
        return f"memementor-embedding-service cannot start: {self.message}"


class SettingsError(StartError):
    """A setting is wrong, or two contradict each other."""


class AddressError(StartError):
    """The service cannot listen where it should."""


class DeviceNotFoundError(StartError):
    """The machine has no such device."""


class ModelLoadError(StartError):
    """A model cannot be loaded."""


class RequestError(ServiceError):
    """The caller can mend it."""


class InvalidBodyError(RequestError):
    """The body breaks off, or its chunks are malformed."""


class InvalidJsonError(RequestError):
    """The body is not JSON, or not an object."""


class UnsupportedEncodingError(RequestError):
    """The body is compressed in a way that is not understood."""


class InvalidFieldError(RequestError):
    """A field is missing, of the wrong type or out of range.

    Args:
        code: One word for programs: missing_field, invalid_type, invalid_value, empty_input or too_many_inputs.
    """

    def __init__(self, message: str, *, code: str, param: str | None) -> None:
        super().__init__(message, param=param)
        self.code = code


class InvalidKeyError(RequestError):
    """No key, or a wrong one."""


class ModelNotFoundError(RequestError):
    """The request names a model that is not served."""


class ModelPageNotFoundError(RequestError):
    """A model that is not served was asked for by its address."""


class UnsupportedDimensionsError(RequestError):
    """More dimensions than the model has."""


class UnknownPromptError(RequestError):
    """The model has no prompt of that name."""


class ContextLengthExceededError(RequestError):
    """A text is longer than the model's window, and truncation was declined."""


class EmptyTextError(RequestError):
    """The model's tokenizer leaves nothing of a text."""


class TokenIdsNotAcceptedError(RequestError):
    """Token ids where texts are wanted, or ids that the model does not know."""


class UnsupportedTokenError(RequestError):
    """A token that the model has no row for."""


class OverloadedError(RequestError):
    """More work than the queue takes.

    Args:
        retry_after_s: Seconds after which there should be room.
    """

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClientGoneError(RequestError):
    """The client closed the connection before it was answered."""


class EngineError(ServiceError):
    """A fault of ours."""


class NotReadyError(EngineError):
    """The engine does not answer."""


class DeadlineExceededError(EngineError):
    """It was not answered in the time it had."""


class NonFiniteVectorError(EngineError):
    """The model gave NaN or infinity."""
