// QR codes (ISO/IEC 18004): a text as bytes, error correction M, versions 1 to 10.

import { svg } from "./dom.js";

// By version: codewords in all, those for correction in each block, blocks.
const VERSIONS = [
  [26, 10, 1], [44, 16, 1], [70, 26, 1], [100, 18, 2], [134, 24, 2],
  [172, 16, 4], [196, 18, 4], [242, 22, 4], [292, 22, 5], [346, 26, 5],
];
const M = 0; // the format bits of error correction M

// The field of 256 elements, modulo x^8 + x^4 + x^3 + x^2 + 1.
const EXP = new Uint8Array(512);
const LOG = new Uint8Array(256);
for (let i = 0, value = 1; i < 255; i++) {
  EXP[i] = EXP[i + 255] = value;
  LOG[value] = i;
  value = (value << 1) ^ (value & 128 ? 0x11d : 0);
}
const times = (a, b) => (a && b ? EXP[LOG[a] + LOG[b]] : 0);

/** The `count` codewords that correct `data`. */
function correction(data, count) {
  let divisor = [1];
  for (let i = 0; i < count; i++) {
    const longer = [...divisor, 0];
    divisor.forEach((value, at) => { longer[at + 1] ^= times(value, EXP[i]); });
    divisor = longer;
  }
  const rest = new Uint8Array(count);
  for (const byte of data) {
    const factor = byte ^ rest[0];
    rest.copyWithin(0, 1);
    rest[count - 1] = 0;
    for (let i = 0; i < count; i++) rest[i] ^= times(divisor[i + 1], factor);
  }
  return rest;
}

/** All codewords in the order in which they are drawn, and the version that holds them. */
function codewords(text) {
  const bytes = new TextEncoder().encode(text);
  const version = 1 + VERSIONS.findIndex(([all, each, blocks], i) => bytes.length + (i < 9 ? 2 : 3) <= all - each * blocks);
  if (!version) throw new RangeError("too long for a code");
  const [all, each, blocks] = VERSIONS[version - 1];
  const room = all - each * blocks;
  const bits = [];
  const put = (value, length) => { for (let i = length - 1; i >= 0; i--) bits.push((value >> i) & 1); };
  put(4, 4); // bytes
  put(bytes.length, version < 10 ? 8 : 16);
  bytes.forEach((byte) => put(byte, 8));
  put(0, Math.min(4, 8 * room - bits.length));
  while (bits.length % 8) bits.push(0);
  const data = [];
  for (let i = 0; i < bits.length; i += 8) data.push(parseInt(bits.slice(i, i + 8).join(""), 2));
  for (let pad = 0xec; data.length < room; pad ^= 0xfd) data.push(pad);
  const short = blocks - (room % blocks); // the last blocks have one codeword more
  const split = Array.from({ length: blocks }, (_, i) => {
    const from = i * Math.floor(room / blocks) + Math.max(0, i - short);
    return data.slice(from, from + Math.floor(room / blocks) + (i >= short ? 1 : 0));
  });
  const correcting = split.map((block) => correction(block, each));
  const longest = Math.max(...split.map((block) => block.length));
  const woven = [];
  for (let i = 0; i < longest; i++) split.forEach((block) => i < block.length && woven.push(block[i]));
  for (let i = 0; i < each; i++) correcting.forEach((block) => woven.push(block[i]));
  return { version, woven };
}

/** Rows of modules, true for dark. */
export function modules(text) {
  const { version, woven } = codewords(text);
  const side = 17 + 4 * version;
  const dark = Array.from({ length: side }, () => new Array(side).fill(false));
  const fixed = Array.from({ length: side }, () => new Array(side).fill(false));
  const set = (x, y, on) => {
    if (x < 0 || y < 0 || x >= side || y >= side) return;
    dark[y][x] = on;
    fixed[y][x] = true;
  };
  patterns(version, side, set);
  const best = MASKS.map((mask, number) => {
    const drawn = dark.map((row) => [...row]);
    weave(side, fixed, woven, (x, y, bit) => { drawn[y][x] = bit !== mask(x, y); });
    formats(number, side, (x, y, on) => { drawn[y][x] = on; });
    return { drawn, cost: penalty(drawn, side) };
  });
  return best.reduce((a, b) => (b.cost < a.cost ? b : a)).drawn;
}

function patterns(version, side, set) {
  for (let i = 0; i < side; i++) {
    set(6, i, i % 2 === 0);
    set(i, 6, i % 2 === 0);
  }
  for (const [x, y] of [[3, 3], [side - 4, 3], [3, side - 4]]) {
    for (let dx = -4; dx <= 4; dx++) {
      for (let dy = -4; dy <= 4; dy++) {
        const ring = Math.max(Math.abs(dx), Math.abs(dy));
        set(x + dx, y + dy, ring !== 2 && ring !== 4);
      }
    }
  }
  const places = version === 1 ? [] : version < 7 ? [6, side - 7] : [6, (side - 1) / 2, side - 7];
  for (const x of places) {
    for (const y of places) {
      if ((x === 6 && y === 6) || (x === 6 && y === side - 7) || (x === side - 7 && y === 6)) continue;
      for (let dx = -2; dx <= 2; dx++) {
        for (let dy = -2; dy <= 2; dy++) set(x + dx, y + dy, Math.max(Math.abs(dx), Math.abs(dy)) !== 1);
      }
    }
  }
  formats(0, side, set);
  if (version < 7) return;
  const bits = (version << 12) | remainder(version, 12, 0x1f25);
  for (let i = 0; i < 18; i++) {
    const [a, b] = [side - 11 + (i % 3), Math.floor(i / 3)];
    set(a, b, Boolean((bits >> i) & 1));
    set(b, a, Boolean((bits >> i) & 1));
  }
}

/** What is left of `value` shifted by `length` when it is divided by `divisor`, bit by bit. */
function remainder(value, length, divisor) {
  let rest = value;
  for (let i = 0; i < length; i++) rest = (rest << 1) ^ ((rest >> (length - 1)) * divisor);
  return rest;
}

function formats(mask, side, set) {
  const value = (M << 3) | mask;
  const bits = ((value << 10) | remainder(value, 10, 0x537)) ^ 0x5412;
  const bit = (i) => Boolean((bits >> i) & 1);
  for (let i = 0; i <= 5; i++) set(8, i, bit(i));
  set(8, 7, bit(6));
  set(8, 8, bit(7));
  set(7, 8, bit(8));
  for (let i = 9; i < 15; i++) set(14 - i, 8, bit(i));
  for (let i = 0; i < 8; i++) set(side - 1 - i, 8, bit(i));
  for (let i = 8; i < 15; i++) set(8, side - 15 + i, bit(i));
  set(8, side - 8, true);
}

/** Lay the codewords' bits in their zigzag over what no pattern has. */
function weave(side, fixed, woven, set) {
  let i = 0;
  for (let right = side - 1; right >= 1; right -= 2) {
    if (right === 6) right = 5;
    for (let step = 0; step < side; step++) {
      const up = ((right + 1) & 2) === 0;
      const y = up ? side - 1 - step : step;
      for (const x of [right, right - 1]) {
        if (fixed[y][x]) continue;
        set(x, y, i < 8 * woven.length && Boolean((woven[i >> 3] >> (7 - (i & 7))) & 1));
        i++;
      }
    }
  }
}

const MASKS = [
  (x, y) => (x + y) % 2 === 0,
  (x, y) => y % 2 === 0,
  (x) => x % 3 === 0,
  (x, y) => (x + y) % 3 === 0,
  (x, y) => (Math.floor(x / 3) + Math.floor(y / 2)) % 2 === 0,
  (x, y) => ((x * y) % 2) + ((x * y) % 3) === 0,
  (x, y) => (((x * y) % 2) + ((x * y) % 3)) % 2 === 0,
  (x, y) => (((x + y) % 2) + ((x * y) % 3)) % 2 === 0,
];

/** How hard a code is to read: long runs, blocks, what looks like a finder, uneven darkness. */
function penalty(drawn, side) {
  const columns = drawn.map((_, x) => drawn.map((row) => row[x]));
  let cost = 0;
  for (const line of [...drawn, ...columns]) {
    const text = line.map(Number).join("");
    for (const run of text.match(/0{5,}|1{5,}/g) ?? []) cost += run.length - 2;
    for (const finder of ["10111010000", "00001011101"]) {
      for (let at = text.indexOf(finder); at >= 0; at = text.indexOf(finder, at + 1)) cost += 40;
    }
  }
  for (let y = 0; y + 1 < side; y++) {
    for (let x = 0; x + 1 < side; x++) {
      if (drawn[y][x] === drawn[y][x + 1] && drawn[y][x] === drawn[y + 1][x] && drawn[y][x] === drawn[y + 1][x + 1]) cost += 3;
    }
  }
  const share = drawn.flat().filter(Boolean).length / side ** 2;
  return cost + 10 * Math.floor(Math.abs(share - 0.5) * 20);
}

/** The code as an SVG, dark on light whatever the theme: that is what cameras read. */
export function qr(text, name) {
  const rows = modules(text);
  const side = rows.length + 8;
  const path = rows.flatMap((row, y) => row.map((on, x) => (on ? `M${x + 4} ${y + 4}h1v1h-1z` : ""))).join("");
  return svg("svg", { viewBox: `0 0 ${side} ${side}`, class: "qr", role: "img", "aria-label": name, "shape-rendering": "crispEdges" },
    svg("rect", { width: side, height: side, fill: "#fff" }), svg("path", { d: path, fill: "#000" }));
}
