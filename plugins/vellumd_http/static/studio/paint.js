// When the page is drawn anew: before the next paint, and not under somebody's finger. A press
// whose element is replaced, or moves away, between down and up is no click to the browser.

const PRESSABLE = "button, a, summary";
const TAP_MS = 50; // the click of a finger comes a moment after it has left

const held = new Set(); // drawings that wait for the end of a press
let pressed = false;
let leaving = 0;

/** Call `draw` once before the next paint, however often it is asked for; during a press, after it. */
export function atNextPaint(draw) {
  let asked = false;
  const paint = () => {
    if (pressed) {
      held.add(paint);
      return;
    }
    asked = false;
    draw();
  };
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(paint);
  };
}

function press(event) {
  release(); // of one whose end was not seen
  pressed = Boolean(event.target.closest?.(PRESSABLE));
}

function release() {
  clearTimeout(leaving);
  pressed = false;
  held.forEach((paint) => requestAnimationFrame(paint));
  held.clear();
}

function leave() {
  leaving = setTimeout(release, TAP_MS);
}

// On the window and while they go down, so that nobody's handler comes before.
const hear = (types, listener) => types.forEach((type) => addEventListener(type, listener, true));
hear(["pointerdown"], press);
hear(["keydown"], (event) => [" ", "Enter"].includes(event.key) && press(event));
hear(["click", "keyup", "pointercancel"], release);
hear(["pointerup"], leave);
hear(["pointermove"], (event) => pressed && !event.buttons && release()); // it ended out of our sight
