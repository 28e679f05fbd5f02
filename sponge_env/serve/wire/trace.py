"""The trace that a request belongs to, by W3C's header ``traceparent``."""

import os
import re
from collections.abc import Mapping

TRACEPARENT = b"traceparent"
_FORM = re.compile(
    rb"(?!ff)[\da-f]{2}-(?!0{32})([\da-f]{32})-(?!0{16})[\da-f]{16}-([\da-f]{2})(?:-.*)?"
)


def own_parent(headers: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """Return the header of an answer: the request's trace, with an id of our own; or none."""
    found = _FORM.fullmatch(headers.get(TRACEPARENT, b""))
    own = os.urandom(8).hex().encode()
    return ((TRACEPARENT, b"00-%s-%s-%s" % (found[1], own, found[2])),) if found else ()
