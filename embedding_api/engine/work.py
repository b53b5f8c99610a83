"""The arrays that pass through the engine room."""

import numpy as np
import numpy.typing as npt

# Token ids of one text: int64, (n_tokens,).
Ids = npt.NDArray[np.int64]

# Vectors of several texts: float32, (n_texts, dim).
Vectors = npt.NDArray[np.float32]
