"""Serving: where a server listens, how much it takes on at a time, and when it gives up."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from llmctl.errors import Exit, UserError

LONGEST_NAME = 200  # characters


@dataclass(frozen=True)
class Serving:
    """Server.

    Raises:
        UserError: a value out of range.
    """

    host: Annotated[str, "Address to listen on; 0.0.0.0 or :: for every one that the machine has."] = "127.0.0.1"
    port: Annotated[int, "Port to listen on; 0: any that is free, which the address on stdout then names."] = 8000
    name: Annotated[
        tuple[str, ...], "What requests call the model; repeatable. Default: the name of its directory."
    ] = ()
    batch_size: Annotated[int, "Completions made at a time; in fp32 the results do not depend on it."] = 16
    memory: Annotated[
        str | None, "Take no more than this (24GiB, 500MB): fewer completions are then made at a time."
    ] = None
    queue: Annotated[int, "Completions that wait beyond those; then requests are refused with 429."] = 64
    max_bytes: Annotated[int, "Size of a request, in bytes, beyond which it is refused with 413."] = 4_000_000
    stall: Annotated[float, "Give a client up that sends or takes nothing for so many seconds."] = 60.0
    grace: Annotated[float, "After SIGTERM or Ctrl-C, finish what was begun, for so many seconds at most."] = 30.0
    api_key_file: Annotated[
        Path | None, "File of keys, a line each, of which clients must send one; LLMCTL_API_KEY holds one, too."
    ] = None

    def __post_init__(self) -> None:
        wrong = [
            f"--{name.replace('_', '-')} is {getattr(self, name)!r}, wanted {wanted}"
            for name, good, wanted in (
                ("host", bool(self.host.strip()), "an address or a name"),
                ("port", 0 <= self.port < 65536, "0 to 65535"),
                ("name", all(map(_nameable, self.name)), f"1 to {LONGEST_NAME} characters that can be printed"),
                ("batch_size", self.batch_size >= 1, "1 or more"),
                ("queue", self.queue >= 0, "0 or more"),
                ("max_bytes", self.max_bytes >= 1, "1 or more"),
                ("stall", 0 < self.stall < float("inf"), "more than 0"),
                ("grace", 0 <= self.grace < float("inf"), "0 or more"),
            )
            if not good
        ]
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)

    @property
    def local(self) -> bool:
        """Whether nobody but this machine can reach it."""
        return is_local(self.host)


def is_local(host: str) -> bool:
    """Whether a host is this machine by an address or name that means no other."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _nameable(name: str) -> bool:
    return 0 < len(name) <= LONGEST_NAME and name.isprintable()
