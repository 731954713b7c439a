"""Drives a chat window of docs/examples from inside its own event loop, as a person would: `python desktop.py qt|tk MODEL`.

It runs where the toolkit can be imported, imports the example, presses its buttons from the loop's timer, and
prints what it saw as one JSON object. Were the loop ever blocked, the timer would not come: loading waits until the
timer has come five times, so a window that loads in its own thread never gets ready.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import edgellm

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
TICK_MS = 10
TICKS_BEFORE_LOADING = 5
LONG = "Count from 1 to 500, one number per line."
CAPITAL = "What is the capital of France? Answer in one word."
Steps = Iterator[None]


class Ui(Protocol):
    """What a person sees and does."""

    worker: Any

    def ask(self, question: str) -> None: ...
    def press_stop(self) -> None: ...
    def can_send(self) -> bool: ...
    def can_stop(self) -> bool: ...
    def text(self) -> str: ...
    def status(self) -> str: ...
    def close(self) -> None: ...


class Qt:
    """The window of desktop_qt.py."""

    def __init__(self, path: str) -> None:
        from PySide6.QtCore import QTimer
        from PySide6.QtWidgets import QApplication

        self.app = QApplication([])
        self.window = importlib.import_module("desktop_qt").Window(path)
        self.window.show()
        self.worker = self.window.worker
        self.timer = QTimer()

    def run(self, tick: Callable[[], None]) -> None:
        self.timer.timeout.connect(tick)
        self.timer.start(TICK_MS)
        self.app.exec()

    def ask(self, question: str) -> None:
        self.window.line.setText(question)
        self.window.send.click()

    def press_stop(self) -> None:
        self.window.stop.click()

    def can_send(self) -> bool:
        return bool(self.window.send.isEnabled())

    def can_stop(self) -> bool:
        return bool(self.window.stop.isEnabled())

    def text(self) -> str:
        return str(self.window.talk.toPlainText())

    def status(self) -> str:
        return str(self.window.status.text())

    def close(self) -> None:
        self.timer.stop()
        self.window.close()

    def picture(self, path: str) -> None:
        self.window.grab().save(path)


class Tk:
    """The window of desktop_tk.py."""

    def __init__(self, path: str) -> None:
        import tkinter

        self.root = tkinter.Tk()
        self.root.report_callback_exception = sys.excepthook  # type: ignore[assignment]
        self.window = importlib.import_module("desktop_tk").Window(self.root, path)
        self.worker = self.window.worker
        self.closed = False

    def run(self, tick: Callable[[], None]) -> None:
        def again() -> None:
            tick()
            if not self.closed:
                self.root.after(TICK_MS, again)

        self.root.after(TICK_MS, again)
        self.root.mainloop()

    def ask(self, question: str) -> None:
        self.window.line.insert(0, question)
        self.window.send.invoke()

    def press_stop(self) -> None:
        self.window.stop.invoke()

    def can_send(self) -> bool:
        return bool(self.window.send.instate(["!disabled"]))

    def can_stop(self) -> bool:
        return bool(self.window.stop.instate(["!disabled"]))

    def text(self) -> str:
        return str(self.window.talk.get("1.0", "end"))

    def status(self) -> str:
        return str(self.window.status["text"])

    def close(self) -> None:
        self.closed = True
        self.window.on_close()

    def picture(self, path: str) -> None:
        import subprocess

        self.root.update()
        subprocess.run(["import", "-window", "root", path], check=True)


def until(condition: Callable[[], bool]) -> Steps:
    while not condition():
        yield


def long_answer(ui: Ui) -> Steps:
    """Ask for something long and wait until some of it is there."""
    before = len(ui.text()) + len(LONG)
    ui.ask(LONG)
    yield from until(lambda: len(ui.text()) > before + 60)


def talk(ui: Ui, gate: threading.Event, seen: dict[str, Any]) -> Steps:
    """Load, answer, stop, survive the death of the child, close in the middle of an answer."""
    for _ in range(TICKS_BEFORE_LOADING):
        yield
    seen["loading"] = [ui.status(), ui.can_send(), ui.can_stop()]
    gate.set()
    yield from until(ui.can_send)
    seen["ready"] = ui.status()
    ui.ask(CAPITAL)
    seen["asked"] = [ui.status(), ui.can_send(), ui.can_stop()]
    yield from until(ui.can_send)
    seen["answer"] = ui.text()
    seen["answered"] = ui.status()

    lengths = set()
    before = len(ui.text())
    ui.ask(LONG)
    while len(ui.text()) < before + 150:
        lengths.add(len(ui.text()))
        yield
    seen["n_steps_seen"] = len(lengths)
    ui.press_stop()
    yield from until(ui.can_send)
    seen["stopped"] = ui.status()
    yield from until(lambda: ui.worker.model.counts().n_cancelled == 1)

    yield from long_answer(ui)
    pid = ui.worker.model._engine.pid
    os.kill(pid, signal.SIGKILL)
    yield from until(ui.can_send)
    seen["crashed"] = ui.status()
    ui.ask(CAPITAL)
    yield from until(ui.can_send)
    seen["after_crash"] = [ui.status(), ui.worker.model._engine.pid != pid]

    yield from long_answer(ui)
    if len(sys.argv) > 3:
        ui.picture(sys.argv[3])  # type: ignore[attr-defined]
    seen["last_child"] = ui.worker.model._engine.pid
    ui.close()


def fail(ui: Ui, gate: threading.Event, seen: dict[str, Any]) -> Steps:
    """A model that does not load."""
    waiting = ui.status()
    gate.set()
    yield from until(lambda: ui.status() != waiting)
    seen["failed"] = [ui.status(), ui.can_send(), ui.can_stop()]
    ui.close()


def main() -> None:
    """Run the scenario that suits the path, and say what was seen."""
    kind, path = sys.argv[1:3]
    sys.path.insert(0, str(EXAMPLES))
    errors: list[str] = []
    sys.excepthook = lambda *err: errors.append("".join(traceback.format_exception(*err)))
    threading.excepthook = lambda args: errors.append(repr(args.exc_value))
    gate, load = threading.Event(), edgellm.load

    def load_behind_the_gate(*args: Any, **options: Any) -> edgellm.Model:
        if not gate.wait(60):
            raise edgellm.EdgeLLMError("the window does not move while a model loads")
        model = load(*args, **options)
        stream = model.stream
        (end,) = model.tokenize("<|im_end|>", parse_special=True)

        def predictable(messages: Any, **options: Any) -> Any:
            """The likeliest text; that to LONG does not end by itself."""
            bias = {end: -1000.0} if messages[-1]["content"] == LONG else {}
            return stream(messages, temperature=0, logit_bias=bias, **options)

        model.stream = predictable  # type: ignore[method-assign]
        return model

    edgellm.load = load_behind_the_gate  # type: ignore[attr-defined]
    ui = {"qt": Qt, "tk": Tk}[kind](path)
    seen: dict[str, Any] = {}
    steps = (talk if Path(path).is_file() else fail)(ui, gate, seen)

    def tick() -> None:
        try:
            next(steps)
        except StopIteration:
            pass
        except BaseException:
            errors.append(traceback.format_exc())
            ui.close()

    ui.run(tick)
    seen["errors"] = errors
    seen["threads"] = [
        t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()
    ]
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
