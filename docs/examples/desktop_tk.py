"""A chat window with Tk: the model loads and answers in a thread of its own, so the window never waits.

pip install edgellm
python desktop_tk.py model.gguf
"""

import queue
import sys
import threading
import tkinter as tk
from tkinter import ttk
from tkinter.scrolledtext import ScrolledText

import edgellm

POLL_MS = 30


class Worker(threading.Thread):
    """Takes questions from one queue and puts what happens into another: Tk may be called from its own thread only."""

    def __init__(self, path: str) -> None:
        super().__init__(name="model")
        self.path = path
        self.questions: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()  # ("piece" or "idle", text)
        self.model: edgellm.Model | None = None
        self.stream = None
        self.stopped = threading.Event()
        self.messages: list[dict[str, object]] = []

    def run(self) -> None:
        try:
            # isolate: native code runs in a child, so that its crash is an error here and the window stays.
            self.model = edgellm.load(self.path, isolate=True)
        except edgellm.EdgeLLMError as err:
            self.events.put(("idle", f"{err}\n{err.hint or ''}"))
            return
        with self.model:
            self.events.put(("idle", f"{self.model.manifest.model} is ready"))
            while (question := self.questions.get()) is not None:
                self.ask(question)

    def ask(self, question: str) -> None:
        messages = [*self.messages, {"role": "user", "content": question}]
        answer, reason = "", "stopped"
        try:
            with self.model.stream(messages, max_tokens=1024, overflow="shift") as self.stream:
                if self.stopped.is_set():
                    self.stream.close()
                for piece in self.stream:
                    answer += piece.text
                    self.events.put(("piece", piece.text))
                    reason = piece.finish_reason or reason
        except edgellm.EdgeLLMError as err:
            self.events.put(("idle", f"{err}\n{err.hint or ''}"))
        else:
            self.messages = [*messages, {"role": "assistant", "content": answer}]
            self.events.put(("idle", f"Done ({reason})"))

    def stop(self) -> None:
        """Called from the window's thread: a stream may be closed from any."""
        self.stopped.set()
        if self.stream:
            self.stream.close()


class Window(ttk.Frame):
    def __init__(self, root: tk.Tk, path: str) -> None:
        super().__init__(root, padding=8)
        self.root = root
        root.title("edgellm and Tk")
        root.protocol("WM_DELETE_WINDOW", self.on_close)
        self.talk = ScrolledText(
            self, width=70, height=20, wrap="word", font="TkTextFont", padx=6, pady=6, state="disabled"
        )
        self.line = ttk.Entry(self)
        self.line.bind("<Return>", self.on_send)
        self.send = ttk.Button(self, text="Send", command=self.on_send)
        self.stop = ttk.Button(self, text="Stop", command=lambda: self.worker.stop())
        self.status = ttk.Label(self, text=f"Loading {path} …", wraplength=540)
        self.talk.grid(row=0, columnspan=3, sticky="nsew")
        for column, widget in enumerate((self.line, self.send, self.stop)):
            widget.grid(row=1, column=column, sticky="ew", pady=8)
        self.status.grid(row=2, columnspan=3, sticky="w")
        self.columnconfigure(0, weight=1)
        self.rowconfigure(0, weight=1)
        self.pack(fill="both", expand=True)
        self.allow(send=False, stop=False)
        self.worker = Worker(path)
        self.worker.start()
        self.poll()

    def poll(self) -> None:
        """Show what the worker has put into its queue, then come back a little later."""
        while not self.worker.events.empty():
            kind, text = self.worker.events.get()
            if kind == "piece":
                self.add(text)
            else:
                if self.talk.get("1.0", "end").strip():
                    self.add("\n\n")
                self.status["text"] = text
                self.allow(send=self.worker.model is not None, stop=False)
        self.polling = self.after(POLL_MS, self.poll)

    def allow(self, *, send: bool, stop: bool) -> None:
        for widget, allowed in ((self.line, send), (self.send, send), (self.stop, stop)):
            widget.state(["!disabled" if allowed else "disabled"])
        if send:
            self.line.focus()

    def add(self, text: str) -> None:
        self.talk["state"] = "normal"
        self.talk.insert("end", text)
        self.talk["state"] = "disabled"
        self.talk.see("end")

    def on_send(self, _: object = None) -> None:
        question = self.line.get().strip()
        if question and self.send.instate(["!disabled"]):
            self.line.delete(0, "end")
            self.add(f"You: {question}\nModel: ")
            self.status["text"] = "Answering …"
            self.allow(send=False, stop=True)
            self.worker.stopped.clear()
            self.worker.questions.put(question)

    def on_close(self) -> None:
        self.root.withdraw()
        self.after_cancel(self.polling)
        self.worker.questions.put(None)
        self.worker.stop()
        self.worker.join()
        self.root.destroy()


if __name__ == "__main__":
    root = tk.Tk()
    Window(root, sys.argv[1])
    root.mainloop()
