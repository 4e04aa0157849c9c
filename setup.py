"""What pyproject.toml cannot say: the native codec, built where Cython and a C compiler are.

Where they are not, the installation succeeds without it and syncd runs its reference codec.
"""

from setuptools import Extension, setup

SECURE = ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3", "-fstack-protector-strong"]
COMPILE = ["-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *SECURE]
# What Cython itself writes trips over these two.
QUIET = ["-Wno-unused-parameter", "-Wno-missing-field-initializers"]
LINK = ["-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack"]


def extensions() -> list[Extension]:
    try:
        from Cython.Build import cythonize
    except ImportError:
        return []
    codec = Extension(
        "sync._codec",
        ["sync/_codec.pyx"],
        extra_compile_args=[*COMPILE, *QUIET],
        extra_link_args=LINK,
    )
    built: list[Extension] = cythonize([codec], build_dir="build/cython", quiet=True)
    for extension in built:
        extension.optional = True  # cythonize() does not carry it over.
    return built


setup(ext_modules=extensions())
