"""Builds libssh2 into a shared library, the modules of its binding against it, and relay_gcm; needs a C compiler and OpenSSL's headers."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NAME = "git-ssh-relay-native"
# Assertions stay on (no NDEBUG) as a last line of defence. zlib and "none" as a cipher or MAC are not compiled in: the relay negotiates
# none of them. The wheel of ssh2-python compiles libssh2 without any optimisation.
LIBRARY_FLAGS = ["-O2", "-UNDEBUG", "-fvisibility=hidden", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
LIBRARY_MACROS = [("HAVE_CONFIG_H", None), ("LIBSSH2_OPENSSL", None), ("LIBSSH2_LIBRARY", None), ("LIBSSH2_EXPORTS", None)]
LINK_FLAGS = ["-Wl,-z,relro,-z,now,--as-needed"]
NAMES = (
    "agent bcrypt_pbkdf channel comp chacha cipher-chachapoly crypt crypto global hostkey keepalive kex knownhost mac misc packet pem "
    "poly1305 publickey scp session sftp transport userauth userauth_kbd_packet version"
)
SOURCES = [f"libssh2/src/{name}.c" for name in NAMES.split(" ")]
MODULES = sorted(path.stem for path in Path("relay_ssh2").glob("*.c"))
# what the compiler warns of in C files that Cython wrote is nobody's to mend here
BINDING_FLAGS = ["-O2", "-g0", "-w"]
PROBE = "#include <openssl/opensslv.h>\n#if OPENSSL_VERSION_NUMBER < 0x10101000L\n#error too old\n#endif\n#include <openssl/evp.h>\n"


class Build(build_ext):
    """libssh2 first, as the modules are linked against it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or len(os.sched_getaffinity(0))
        self.inplace = False

    def build_extensions(self) -> None:
        self._probe()
        folder = Path(self.build_lib, "relay_ssh2")
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(int(self.parallel)) as threads:
            objects = [one for made in threads.map(self._object, SOURCES) for one in made]
        library = folder / "librelay_ssh2.so"
        linking = [*self._flags(), *LINK_FLAGS, f"-Wl,-soname,{library.name}"]
        self.compiler.link_shared_object(objects, str(library), libraries=["crypto"], extra_postargs=linking)
        for extension in self.extensions:
            if extension.name != "relay_gcm":
                extension.library_dirs.append(str(folder))
        super().build_extensions()

    def _object(self, source: str) -> list[str]:
        include = [".", "libssh2/include", "libssh2/src"]
        flags = [*LIBRARY_FLAGS, *self._flags()]
        made: list[str] = self.compiler.compile(
            [source], output_dir=self.build_temp, macros=LIBRARY_MACROS, include_dirs=include, extra_postargs=flags
        )
        return made

    def _flags(self) -> list[str]:
        return shlex.split(os.environ.get("RELAY_LIBSSH2_CFLAGS", ""))

    def _probe(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(PROBE)
            try:
                self.compiler.compile([str(source)], output_dir=folder)
            except CompileError:
                sys.exit(
                    f"{NAME}: a C compiler with the headers of OpenSSL 1.1.1 or later is needed: "
                    "apt-get install gcc libssl-dev, dnf install gcc openssl-devel, or apk add gcc musl-dev openssl-dev"
                )


def extension(name: str) -> Extension:
    return Extension(
        f"relay_ssh2.{name}",
        [f"relay_ssh2/{name}.c", *(["relay_ssh2/ext/find_eol.c"] if name == "utils" else [])],
        include_dirs=["libssh2/include", "relay_ssh2"],
        libraries=["relay_ssh2"],
        runtime_library_dirs=["$ORIGIN"],
        extra_compile_args=BINDING_FLAGS,
        extra_link_args=LINK_FLAGS,
    )


GCM_FLAGS = ["-O2", "-Wall", "-Wextra", "-fstack-protector-strong"]
setup(
    cmdclass={"build_ext": Build},
    ext_modules=[
        *map(extension, MODULES),
        Extension("relay_gcm", ["relay_gcm.c"], libraries=["crypto"], extra_compile_args=GCM_FLAGS, extra_link_args=LINK_FLAGS),
    ],
)
