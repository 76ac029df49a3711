"""The command ``shoal``: verbs that call the library, progress on stderr, one clear line for what the user can mend.

Exit codes: 0 done; 2 something the user can mend; 130 interrupted, can be resumed; 1 a fault of ours (with a traceback).
"""

import errno
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from types import FrameType
from typing import Any, NoReturn

from shoal.cli.noise import show_warning, silence_libraries, write_in_any_encoding
from shoal.engine.out_of_memory import is_out_of_memory
from shoal.engine.workers import LostWorker, join, report_failure
from shoal.words.refusal import is_refusal

INTERRUPTED = 130
UNTIL_THE_LAUNCHER_ACTS = 6.0  # Launchers look at their processes more often than every so many seconds.


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    from shoal.cli.malloc import keep_freed_memory

    keep_freed_memory()
    silence_libraries()
    write_in_any_encoding()
    warnings.showwarning = show_warning
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _interrupt_again
    try:
        code = _run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        _say("interrupted" + ("; run the same command again to go on from the last finished step" if _goes_on() else ""))
    sys.exit(code)


def _run() -> int:
    from shoal.cli.table import app

    try:
        return app(prog_name="shoal", standalone_mode=False) or 0
    except Exception as error:  # This is the last line of defence: every error is named and given its exit code here.
        return _report(error)
    except SystemExit as exit:  # The parser ends an interrupted verb in this way.
        return int(exit.code or 0)


def _goes_on() -> bool:
    """Whether the verb that was typed keeps what it has finished."""
    from shoal.cli.table import RESUMED

    return bool({*sys.argv[1:2]} & {*RESUMED})


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _interrupt_again(lost: "sys.UnraisableHookArgs") -> None:
    """An interrupt that came while a destructor ran, which no exception leaves, comes once more a moment later."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    again = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM])  # A signal ends a wait, too.
    again.daemon = True
    again.start()


def _meant(error: Any) -> str:
    """What a missing option or argument is for: the first sentence of its help."""
    about = getattr(getattr(error, "param", None), "help", "") if type(error).__name__ == "MissingParameter" else ""
    return f" {about.split('. ')[0].rstrip('.')}." if about else ""


def _verbs_with(error: Any) -> str:
    """Which other verbs have an option that this one has not."""
    option = getattr(error, "option_name", "")
    group = error.ctx.find_root().command
    verbs = [
        name
        for name in (group.list_commands(error.ctx) if option else ())
        if any(option in one.opts for one in group.get_command(error.ctx, name).params)
    ]
    return f"{', '.join(verbs)} {'has' if len(verbs) == 1 else 'have'} it; " if verbs else ""


def _report(error: Exception) -> int:
    import click

    if isinstance(error, click.exceptions.Abort):
        return INTERRUPTED
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]  # the whole help, as it is
        return 2
    if isinstance(error, click.ClickException) or hasattr(error, "format_message"):
        message = error.format_message().replace("Value error, ", "")  # pydantic puts this before our own words.
        context = getattr(error, "ctx", None)
        message += _meant(error)
        hint = f" ({_verbs_with(error)}see '{context.command_path} --help')" if context else ""
        _fail(f"error: {' '.join(message.split())}{hint}")
        return 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _fail(f"error: the disk is full ({error.filename or 'while writing'}); free some space and run the same command again")
        return 2
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        name = str(error.filename or "a name")
        _fail(f"error: {name[:60]}{'...' * (len(name) > 60)} cannot be opened ({error.strerror}); give another name")
        return 2
    if isinstance(error, PermissionError) or isinstance(error, OSError) and error.errno == errno.EROFS:
        _fail(f"error: no permission to read or write {error.filename}; choose another place or change its rights")
        return 2
    if is_refusal(error):
        _fail(f"error: {' '.join(str(error).split())}")
        return 2
    if is_out_of_memory(error):
        _fail(
            "error: out of memory; finished steps are kept: give --resident 1, a smaller --length or --dtype bfloat16 "
            "(`shoal plan MODEL --memory` says what each step takes)"
        )
        return 2
    if isinstance(error, LostWorker):
        # The launcher should see first who failed; if this process left now, it could be taken for that one.
        time.sleep(UNTIL_THE_LAUNCHER_ACTS)
        _fail(f"error: {error}; run the same command again to go on")
        return 1
    _fail(f"{''.join(traceback.format_exception(error))}this is a fault of shoal, not of your input: please report it")
    return 1


def _fail(text: str) -> None:
    """Say why this process ends, to people and to its launcher.

    What ends all processes of a job is said by the first. The others wait for their launcher to end them, and speak if it does
    not: then the trouble is theirs alone.
    """
    workers = join()
    report_failure(text)
    if workers.is_first:
        _say(text)
        return
    time.sleep(UNTIL_THE_LAUNCHER_ACTS)
    print(f"shoal: rank {workers.rank}: {text}", file=sys.stderr)


def _say(text: str) -> None:
    if join().is_first:
        from shoal.show.clean_text import clean  # The import stands here, so that ``--help`` reads no tables.

        print(f"shoal: {clean(text)}", file=sys.stderr)
