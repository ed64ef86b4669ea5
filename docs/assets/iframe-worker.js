// Pages that are opened as files may not start workers, and search is one. There, a frame stands for it:
// it has a global scope of its own, and hands messages on.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.append(frame);
      this.scope = frame.contentWindow;
      this.waiting = [];
      const tell = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      this.scope.postMessage = tell;
      this.scope.importScripts = (...urls) => Promise.all(urls.map((each) => load(each)));
      const load = (src) => new Promise((done, failed) => {
        const script = frame.contentDocument.createElement("script");
        Object.assign(script, { src, onload: done, onerror: failed });
        frame.contentDocument.body.append(script);
      });
      load(url).then(() => {
        for (const data of this.waiting.splice(0)) this.hand(data);
        this.waiting = null;
      });
    }
    hand(data) {
      const event = new this.scope.MessageEvent("message", { data });
      this.scope.dispatchEvent(event);
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.hand(data);
    }
    terminate() {}
  };
}
