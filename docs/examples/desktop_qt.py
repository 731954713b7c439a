"""A chat window with Qt: the model loads and answers in a thread of its own, so the window never waits.

pip install edgellm PySide6-Essentials
python desktop_qt.py model.gguf
"""

import sys
import threading

from PySide6.QtCore import QObject, QThread, Signal, Slot
from PySide6.QtGui import QCloseEvent, QTextCursor
from PySide6.QtWidgets import (
    QApplication,
    QGridLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QWidget,
)

import edgellm


class Worker(QObject):
    """Its slots run in the worker thread; Qt carries its signals over to the window's thread."""

    piece = Signal(str)  # text of an answer
    idle = Signal(str)  # nothing more to do; what happened

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.model: edgellm.Model | None = None
        self.stream = None
        self.stopped = threading.Event()
        self.messages: list[dict[str, object]] = []

    @Slot()
    def load(self) -> None:
        try:
            # isolate: native code runs in a child, so that its crash is an error here and the window stays.
            self.model = edgellm.load(self.path, isolate=True)
            self.idle.emit(f"{self.model.manifest.model} is ready")
        except edgellm.EdgeLLMError as err:
            self.idle.emit(f"{err}\n{err.hint or ''}")

    @Slot(str)
    def ask(self, question: str) -> None:
        messages = [*self.messages, {"role": "user", "content": question}]
        answer, reason = "", "stopped"
        try:
            with self.model.stream(messages, max_tokens=1024, overflow="shift") as self.stream:
                if self.stopped.is_set():
                    self.stream.close()
                for piece in self.stream:
                    answer += piece.text
                    self.piece.emit(piece.text)
                    reason = piece.finish_reason or reason
        except edgellm.EdgeLLMError as err:
            self.idle.emit(f"{err}\n{err.hint or ''}")
        else:
            self.messages = [*messages, {"role": "assistant", "content": answer}]
            self.idle.emit(f"Done ({reason})")

    def stop(self) -> None:
        """Called from the window's thread: a stream may be closed from any."""
        self.stopped.set()
        if self.stream:
            self.stream.close()


class Window(QWidget):
    load = Signal()
    ask = Signal(str)

    def __init__(self, path: str) -> None:
        super().__init__(windowTitle="edgellm and Qt")
        self.talk = QPlainTextEdit(readOnly=True)
        self.line = QLineEdit(placeholderText="Ask something", returnPressed=self.on_send)
        self.send = QPushButton("Send", clicked=self.on_send)
        self.stop = QPushButton("Stop", clicked=lambda: self.worker.stop())
        self.status = QLabel(f"Loading {path} …", wordWrap=True)
        grid = QGridLayout(self)
        grid.addWidget(self.talk, 0, 0, 1, 3)
        for column, widget in enumerate((self.line, self.send, self.stop)):
            grid.addWidget(widget, 1, column)
        grid.addWidget(self.status, 2, 0, 1, 3)
        self.resize(560, 420)
        self.allow(send=False, stop=False)

        self.worker, self.background = Worker(path), QThread()
        self.worker.moveToThread(self.background)
        self.load.connect(self.worker.load)
        self.ask.connect(self.worker.ask)
        self.worker.piece.connect(self.add)
        self.worker.idle.connect(self.on_idle)
        self.background.start()
        self.load.emit()

    def allow(self, *, send: bool, stop: bool) -> None:
        self.line.setEnabled(send)
        self.send.setEnabled(send)
        self.stop.setEnabled(stop)
        if send:
            self.line.setFocus()

    def add(self, text: str) -> None:
        self.talk.moveCursor(QTextCursor.MoveOperation.End)
        self.talk.insertPlainText(text)
        self.talk.ensureCursorVisible()

    def on_send(self) -> None:
        question = self.line.text().strip()
        if question and self.send.isEnabled():
            self.line.clear()
            self.add(f"You: {question}\nModel: ")
            self.status.setText("Answering …")
            self.allow(send=False, stop=True)
            self.worker.stopped.clear()
            self.ask.emit(question)

    def on_idle(self, what: str) -> None:
        if self.talk.toPlainText():
            self.add("\n\n")
        self.status.setText(what)
        self.allow(send=self.worker.model is not None, stop=False)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        self.hide()
        self.worker.stop()
        self.background.quit()
        self.background.wait()
        if self.worker.model:
            self.worker.model.close()
        event.accept()


if __name__ == "__main__":
    app = QApplication(sys.argv)
    window = Window(sys.argv[1])
    window.show()
    sys.exit(app.exec())
