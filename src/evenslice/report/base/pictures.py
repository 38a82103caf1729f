"""Pictures inside a page, each stored once."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class StoredPicture:
    """A picture of a page; ``height`` in units of which its width has 100."""

    name: str
    uri: str
    height: float


def store_picture(store: dict[str, StoredPicture], picture: NDArray[np.uint8]) -> StoredPicture:
    """Add a picture (y, x) to the pictures of a page, by data URI, unless it has the same one; return the stored one."""
    uri, height = data_uri(picture), 100 * picture.shape[0] / picture.shape[1]
    return store.setdefault(uri, StoredPicture(f"picture-{len(store) + 1}", uri, height))


def data_uri(picture: NDArray[np.uint8]) -> str:
    """Return a picture, gray (y, x) or with opacity (y, x, 4), as a data URI in WebP format."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=75, alpha_quality=60, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
