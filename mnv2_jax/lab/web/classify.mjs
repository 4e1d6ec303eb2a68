// What `mnv2 predict` does with a picture, in a browser: the same cut, the same resizing, the file
// model.onnx, and probabilities. Nothing is sent anywhere.

const CUBIC = -0.5; // as Pillow's
const UNIT = 2 ** 22; // Pillow's weights are integers, this many to 1
const BAND = 1 << 20; // pixels that are taken from a canvas at once

const KERNELS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    x = Math.abs(x);
    if (x < 1) return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * CUBIC : 0;
  }],
};

// Halves go to the even neighbor, as in Python.
function round(x) {
  const up = Math.round(x);
  return up - (up - x === 0.5 && up % 2 !== 0);
}

// For every new pixel of a line, the old ones that it is made of, as [index, weight] pairs.
function taps(from, to, method, antialias) {
  const scale = from / to;
  const last = from - 1;
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    if (method === "nearest") return [[Math.floor(center), 1]];
    const [support, kernel] = KERNELS[method];
    const found = [];
    if (!antialias) {
      const first = Math.floor(center - 0.5) - support + 1;
      for (let j = first; j < first + 2 * support; j++)
        found.push([Math.min(Math.max(j, 0), last), kernel(center - 0.5 - j)]);
      return found;
    }
    const widened = Math.max(scale, 1);
    const first = Math.max(0, Math.trunc(center - support * widened + 0.5));
    const end = Math.min(from, Math.trunc(center + support * widened + 0.5));
    let sum = 0;
    for (let j = first; j < end; j++) {
      const weight = kernel((j - center + 0.5) * (1 / widened));
      sum += weight;
      found.push([j, weight]);
    }
    return found.map(([j, weight]) => {
      const share = (weight / sum) * UNIT;
      return [j, Math.trunc(share + (share < 0 ? -0.5 : 0.5)) / UNIT];
    });
  });
}

const byte = (x) => Math.min(255, Math.max(0, Math.floor(x + 0.5)));

// The rectangle that a model sees of a picture: left, top, width, height.
export function cut(width, height, { crop, fraction }) {
  const part = (side) => Math.max(1, round(fraction * side));
  let size = [width, height];
  if (crop === "center") size = Array(2).fill(part(Math.min(width, height)));
  if (crop === "stretch") size = [part(width), part(height)];
  return [(width - size[0]) >> 1, (height - size[1]) >> 1, ...size];
}

// The bytes that a model takes: (size, size, channels). `read(left, top, width, height)` gives the
// RGBA bytes of a rectangle of the picture.
export function prepare(read, width, height, rule) {
  const { size, channels, method, antialias } = rule;
  const [left, top, across, down] = cut(width, height, rule);
  const keep = antialias ? byte : (x) => x; // Pillow rounds after each direction
  const columns = taps(across, size, method, antialias);
  const rows = new Float32Array(down * size * channels);
  const high = Math.max(1, Math.floor(BAND / across));
  for (let start = 0; start < down; start += high) {
    const count = Math.min(high, down - start);
    const rgba = read(left, top + start, across, count);
    if (channels === 1) // ITU-R 601 luma in Pillow's integers
      for (let p = 0; p < rgba.length; p += 4)
        rgba[p] = (19595 * rgba[p] + 38470 * rgba[p + 1] + 7471 * rgba[p + 2] + 32768) >> 16;
    for (let y = 0; y < count; y++)
      for (let x = 0; x < size; x++)
        for (let c = 0; c < channels; c++) {
          let sum = 0;
          for (const [j, weight] of columns[x]) sum += weight * rgba[4 * (y * across + j) + c];
          rows[((start + y) * size + x) * channels + c] = keep(sum);
        }
  }
  const pixels = new Uint8Array(size * size * channels);
  const line = size * channels;
  taps(down, size, method, antialias).forEach((found, y) => {
    for (let x = 0; x < line; x++) {
      let sum = 0;
      for (const [j, weight] of found) sum += weight * rows[j * line + x];
      pixels[y * line + x] = byte(sum);
    }
  });
  return pixels;
}

// The bytes for a picture, video or canvas of a size.
export function pixelsOf(picture, width, height, rule) {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const read = (x, y, w, h) => {
    [canvas.width, canvas.height] = [w, h];
    context.drawImage(picture, x, y, w, h, 0, 0, w, h);
    return context.getImageData(0, 0, w, h).data;
  };
  return prepare(read, width, height, rule);
}

// A picture in a file, upright, its colors as they are stored.
export function decode(file) {
  return createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

// Probabilities of logits; what comes before the classes is "background".
export function softmax(logits, background) {
  const own = Array.from(logits).slice(background);
  const largest = own.reduce((a, b) => Math.max(a, b));
  const parts = own.map((logit) => Math.exp(logit - largest));
  const sum = parts.reduce((a, b) => a + b);
  return parts.map((part) => part / sum);
}

// Loads the model beside this file: what it is, and `probabilities` of the bytes of a picture.
export async function load() {
  const there = (name) => new URL(name, import.meta.url).href;
  const ort = await import("./ort.wasm.bundle.min.mjs");
  ort.env.wasm.numThreads = 1;
  const response = await fetch(there("model.json"));
  if (!response.ok) throw new Error(`model.json: ${response.status}`);
  const model = await response.json();
  const session = await ort.InferenceSession.create(there("model.onnx"));
  const { size, channels } = model.rule;
  const probabilities = async (pixels) => {
    const images = new ort.Tensor("uint8", pixels, [1, size, size, channels]);
    const outputs = await session.run({ [session.inputNames[0]]: images });
    return softmax(outputs[session.outputNames[0]].data, model.background);
  };
  return { ...model, probabilities };
}
