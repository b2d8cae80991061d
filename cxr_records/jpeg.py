"""What a decoder of JPEG passes over: damage for which libjpeg warns, and goes on with guessed pixels."""

import simplejpeg

from cxr_records.decoding import ImageDecodeError


def check_jpeg(data: bytes) -> None:
    """Decodes a JPEG file once more, to one eighth, where each of libjpeg's warnings is an error.

    Pillow does not tell them. JPEG has no checksums: where a flipped bit makes another valid code of
    equal standing, nothing can be known of it, and nothing is.

    Raises:
        ImageDecodeError: libjpeg warns of the file, or cannot decode it in this way.
    """
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        text = " ".join(str(error).split())
        if "subsampling" in text:  # TurboJPEG knows no more than what cameras and scanners write
            raise ImageDecodeError(
                "JPEG whose colours are subsampled in a rare way, which cannot be checked for damage; "
                "save it as PNG"
            ) from error
        raise ImageDecodeError(f"damaged JPEG: {text.removeprefix('Corrupt JPEG data: ')}") from error
