"""What hafw-raftd may do once it runs: nothing but its folder, its sockets and its log. Shell.

It starts as root, like all of hafw's daemons: to read its key and to make its socket in a folder
of root's. Then it becomes the user `hafw` if there is one, else `nobody`, without groups and
capabilities, and works in its own folder by relative paths: it may not even walk there again.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
from pathlib import Path

from hafw.errors import StateError

__all__ = ["USERS", "become_unprivileged", "enter_folder"]

USERS = ("hafw", "nobody")
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAPBSET_DROP = 24
_CAPS_MAX = 64


def user() -> pwd.struct_passwd:
    """Whom to become. Raises StateError."""
    for name in USERS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        if found.pw_uid != 0:
            return found
    raise StateError(f"there is no user {' or '.join(USERS)} for hafw-raftd to run as")


def enter_folder(folder: Path) -> None:
    """Make the folder, give it and what is in it to the user, and work in it. Raises StateError.

    What is in it is a regular file or is left alone: a link could lead to another's."""
    who = user()
    try:
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        os.chown(folder, who.pw_uid, who.pw_gid)
        folder.chmod(0o700)
        os.chdir(folder)
        for entry in os.scandir("."):
            if entry.is_file(follow_symlinks=False):
                os.chown(entry.name, who.pw_uid, who.pw_gid, follow_symlinks=False)
    except OSError as error:
        raise StateError(f"cannot use {folder}: {error.strerror}") from None


def become_unprivileged() -> int:
    """Returns the user id. Raises StateError: rather no Raft than one with root's rights."""
    who = user()
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        for capability in range(_CAPS_MAX):
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # Refused beyond the last: fine.
        os.setgroups([])
        os.setresgid(who.pw_gid, who.pw_gid, who.pw_gid)
        os.setresuid(who.pw_uid, who.pw_uid, who.pw_uid)
    except OSError as error:
        raise StateError(f"cannot become {who.pw_name}: {error.strerror}") from None
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise StateError(f"cannot give up privileges: {os.strerror(ctypes.get_errno())}")
    held = [line for line in Path("/proc/self/status").read_text().splitlines() if "Cap" in line]
    left = [line for line in held if not line.startswith("CapInh") and int(line.split()[1], 16)]
    if left or os.getuid() == 0 or grp.getgrgid(os.getgid()).gr_gid == 0:
        raise StateError(f"privileges are left after giving them up: {'; '.join(left)}")
    return who.pw_uid
