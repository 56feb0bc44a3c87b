"""spank/scratch_slurm.lua in a real interpreter, with tables of ours in the place of slurmctld's."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "spank" / "scratch_slurm.lua"

# Slurm is built with either; Debian's with 5.1.
INTERPRETERS = ("lua5.1", "lua5.4")

VALIDATION_OFF = "SchedulerParameters=bf_interval=1,ignore_prefer_validation\n"

# Prints what it leaves of the job as JSON strings, which hold every byte.
_HARNESS = r"""
local function quote(text)
    return '"' .. string.gsub(tostring(text), "[^%w ]", function(c)
        return string.format("\\u%04x", string.byte(c))
    end) .. '"'
end
messages = {}
slurm = { SUCCESS = 0, ERROR = -1 }
for _, level in ipairs({ "error", "info", "debug", "user" }) do
    slurm["log_" .. level] = function(format, ...)
        messages[#messages + 1] = level .. ": " .. string.format(format, ...)
    end
end
function show(code, job)
    io.write("{\"code\": ", tostring(code))
    for _, key in ipairs({ "features", "prefer", "admin_comment" }) do
        io.write(", ", quote(key), ": ", job[key] == nil and "null" or quote(job[key]))
    end
    io.write(", \"messages\": [")
    for index, message in ipairs(messages) do
        io.write(index > 1 and ", " or "", quote(message))
    end
    io.write("]}\n")
end
"""


@dataclass(frozen=True)
class Outcome:
    """A job after the script: what Slurm is told, and what was said, each message after its level."""

    code: int
    features: str | None
    prefer: str | None
    admin_comment: str | None
    messages: tuple[str, ...]

    @property
    def told(self) -> str:
        """What the user sees."""
        return "\n".join(text.removeprefix("user: ") for text in self.messages if text.startswith("user: "))


class Script:
    """The script as one interpreter runs it, beside a slurm.conf of the caller's.

    Args:
        conf: the text of slurm.conf; None is no such file.
        settings: Lua that runs when the script is loaded.
        before: Lua that runs before that.
    """

    def __init__(
        self,
        interpreter: str,
        directory: Path,
        conf: str | None = VALIDATION_OFF,
        settings: str = "",
        before: str = "",
    ) -> None:
        self._settings = settings
        self._before = before
        found = shutil.which(interpreter)
        assert found is not None
        self._interpreter = found
        self._directory = directory
        self._conf = directory / "slurm.conf"
        if conf is not None:
            self._conf.write_text(conf)

    def run(self, code: str) -> Outcome:
        """Load the script and run Lua that ends with `show(code, job)`."""
        program = self._directory / "case.lua"
        load = f"script = dofile({quoted(str(SCRIPT))})"
        program.write_text(f"{_HARNESS}\n{self._before}\n{load}\n{self._settings}\n{code}\n", encoding="utf-8")
        env = {"SLURM_CONF": str(self._conf), "PATH": os.defpath}
        words = [self._interpreter, str(program)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr
        values = json.loads(done.stdout)
        keys = ("features", "prefer", "admin_comment")
        latin = {key: values[key] and values[key].encode("latin-1").decode() for key in keys}
        return Outcome(values["code"], messages=tuple(values["messages"]), **latin)

    def submit(self, job: "Table", partitions: "Table | None" = None) -> Outcome:
        """Run slurm_job_submit() on a job description; `spank_job_env` begins at 0, as slurmctld's does."""
        return self.run(f"job = {table(job)}\nshow(slurm_job_submit(job, {table(partitions or {})}, 1000), job)")

    def modify(self, job: "Table", record: "Table", partitions: "Table | None" = None) -> Outcome:
        """Run slurm_job_modify()."""
        words = f"job, {table(record)}, {table(partitions or {})}, 1000"
        return self.run(f"job = {table(job)}\nshow(slurm_job_modify({words}), job)")


Table = Mapping[str, Any]
"""Of words, numbers, lists of words, and tables."""


def table(values: Table) -> str:
    """Write a Lua table."""
    fields = []
    for key, value in values.items():
        if isinstance(value, int):
            written = str(value)
        elif isinstance(value, str):
            written = quoted(value)
        elif isinstance(value, Mapping):
            written = table(value)
        else:
            written = "{" + ", ".join(f"[{i}] = {quoted(text)}" for i, text in enumerate(value)) + "}"
        fields.append(f"[{quoted(key)}] = {written}")
    return "{" + ", ".join(fields) + "}"


def quoted(text: str) -> str:
    """Write a Lua string that holds any bytes."""
    return '"' + "".join(f"\\{byte:03d}" for byte in os.fsencode(text)) + '"'
