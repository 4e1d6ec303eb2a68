"""Reads TensorBoard's events as TensorBoard does."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """Every value by tag and step, but for those that a later attempt took back; none twice."""
    found: dict[tuple[str, int], float] = {}
    for path in sorted(folder.glob("events*")):
        content, at = path.read_bytes(), 0
        while at + 12 <= len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            if at + 16 + length > len(content):
                break  # cut by a kill
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            if event.session_log.status == SessionLog.START:
                found = {key: v for key, v in found.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in found, (path, value.tag, event.step)
                found[value.tag, event.step] = value.simple_value
    return found
