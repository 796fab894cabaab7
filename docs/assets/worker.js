// Search runs in a worker, and browsers start none for a page opened as a file. There, a hidden frame takes its place.
// As with a worker, messages are copies and arrive later.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => this.later(() => this.onmessage?.(new MessageEvent("message", { data: structuredClone(data) })));
      const script = inside.document.createElement("script");
      script.src = url;
      this.ready = new Promise((go) => (script.onload = go));
      inside.document.body.append(script);
    }
    later(act) {
      setTimeout(() => this.frame && act());
    }
    postMessage(data) {
      const copy = structuredClone(data);
      this.ready.then(() => this.later(() => this.frame.contentWindow.onmessage?.(new MessageEvent("message", { data: copy }))));
    }
    terminate() {
      this.frame?.remove();
      this.frame = null;
    }
  };
}
