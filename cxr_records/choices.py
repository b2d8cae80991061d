"""What the options of a build may be, in words: --help shows them without loading what they mean."""

CODECS = ("raw", "png", "jpeg")
RESAMPLE = ("box", "bilinear", "bicubic", "lanczos")
LOCAL_RUNNER = "FnApiRunner"
RULES = ("linear", "sqrt", "fixed", "none")

RULE_HELP = (
    "How images of rare classes are repeated, in the training split only. linear: a class held by a share f "
    "of the images gets TARGET/f records per image; sqrt: the square root of that (repeat factor sampling); "
    "fixed: every image of the classes gets N copies beside the original; none: no copies. "
    "An image with several findings follows its rarest."
)
TARGET_HELP = "The share of the training images below which linear and sqrt copy a class (0 to 1)."
MAX_HELP = (
    "linear, sqrt: at most this many records per image, the original among them. fixed: N, the number of "
    "copies beside the original (10 copies make 11 records and meet all ten functions)."
)
OF_HELP = (
    "Copy for these classes only; may be given several times. Without it, linear and sqrt look at every "
    "class, and fixed takes the under-represented ones: those whose IRLbl (images of the most frequent "
    "class / images of this class) is above the mean IRLbl of all; none where that mean is 1.5 or less."
)
