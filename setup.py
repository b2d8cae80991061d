"""What setup.cfg cannot say: an extension in C, without which the package works too."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "cxr_records._pixels",
            ["cxr_records/_pixels.c"],
            # Python's stable interface of 3.10, so that one wheel serves all later versions.
            define_macros=[("Py_LIMITED_API", "0x030A0000")],
            py_limited_api=True,
            optional=True,  # where it cannot be built, Pillow decodes, to the same bytes
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
