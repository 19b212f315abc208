// Letting a phone in: a code that its camera reads, good once and for two minutes.

import * as api from "./api.js";
import { button, dialog, h, toast } from "./dom.js";
import { qr } from "./qr.js";

const HERE = /^(localhost|127\..*|\[::1\])$/;

/** The link for another device, null where none can reach this daemon. */
async function link() {
  const { code, address } = await api.invite();
  const reached = HERE.test(location.hostname) ? address : location.origin;
  if (!reached) return null;
  return { url: `${reached}/${code ? `#code=${code}` : ""}`, once: Boolean(code) };
}

async function content(redraw) {
  const made = await link();
  if (!made) {
    return [h("p", {}, "This daemon listens on this machine alone."),
      h("p", { class: "muted" }, "Start it with ", h("code", {}, "--plugins.http.host 0.0.0.0"), " to let a phone in; it makes a key by itself.")];
  }
  return [
    qr(made.url, `QR code of ${made.url}`),
    h("p", { class: "muted" }, made.once ? "Point the phone's camera at it. The code lets one browser in, within two minutes." : "Point the phone's camera at it."),
    h("p", {}, h("a", { href: made.url, class: "link" }, made.url)),
    made.once ? h("p", { class: "actions" }, button("New code", "again", redraw)) : null,
  ];
}

/** Show the dialog. */
export async function invite() {
  const box = h("div", { class: "invite" });
  const redraw = async () => {
    try {
      box.replaceChildren(...(await content(redraw)).filter(Boolean));
    } catch (failure) {
      toast(failure.message, true);
    }
  };
  await redraw();
  if (box.childNodes.length) dialog("Open on a phone", box, "small");
}
