"""What tells drawn images from X-rays of patients, and the words that stand beside numbers of drawings."""

# A column of the look-alike set's tables, which no table of NIH's has, and what stands in it.
DRAWN_COLUMN, DRAWN_BY_US = "Drawn by", "cxr_records"
NONE, SOME, ALL = "none", "some", "all"
_WORDS = {
    NONE: "",
    SOME: "on images of which some are drawn, which say nothing about patients",
    ALL: "on drawn images, which say nothing about patients",
}


def drawn_share(drawn: int, images: int) -> str:
    """Returns how many of the images are drawings: NONE, SOME or ALL."""
    return NONE if not drawn else SOME if drawn < images else ALL


def drawn_words(share: str) -> str:
    """Returns what is to stand beside every number that drawings had a part in; "" beside others.

    Args:
        share: as `drawn_share` says it.
    """
    return _WORDS[share]
