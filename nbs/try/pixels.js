/**
 * Resampling that gives the same bytes as Pillow and OpenCV do.
 *
 * A face is read from 48 × 48 pixels. Canvas would resample them in a way of its own, and each
 * browser in another, so what Python does is done here again, rounding included.
 *
 * @typedef {{width: number, height: number, channels: number, data: Uint8Array}} Pixels
 */

/** @type {(width: number, height: number, channels: number) => Pixels} */
const blank = (width, height, channels) =>
  ({width, height, channels, data: new Uint8Array(width*height*channels)})

/** Between two limits. @type {(v: number, low: number, high: number) => number} */
export const clip = (v, low, high) => Math.min(Math.max(v, low), high)

/** Half goes to the even neighbour, as in Python and NumPy. @param {number} v */
export function roundEven(v) {
  const floor = Math.floor(v)
  if (v - floor !== .5) return Math.round(v)
  return floor % 2 ? floor + 1 : floor
}

/** RGB of what a canvas holds. @type {(image: ImageData) => Pixels} */
export function fromCanvas({width, height, data}) {
  const out = blank(width, height, 3)
  for (let i = 0, j = 0; i < data.length; i += 4) {
    out.data[j++] = data[i]
    out.data[j++] = data[i + 1]
    out.data[j++] = data[i + 2]
  }
  return out
}

/** One channel: Pillow's convert('L'). @type {(image: Pixels) => Pixels} */
export function toGrey({width, height, data}) {
  const out = blank(width, height, 1)
  for (let i = 0, j = 0; j < out.data.length; i += 3, j++)
    out.data[j] = (data[i]*19595 + data[i + 1]*38470 + data[i + 2]*7471 + 0x8000) >> 16
  return out
}

/**
 * A part in whole pixels, the border repeated outside.
 * @type {(image: Pixels, left: number, top: number, right: number, bottom: number) => Pixels}
 */
export function padded(image, left, top, right, bottom) {
  const {width, height, channels: c, data} = image, out = blank(right - left, bottom - top, c)
  let j = 0
  for (let y = top; y < bottom; y++) {
    const row = clip(y, 0, height - 1)*width
    for (let x = left; x < right; x++) {
      const i = (row + clip(x, 0, width - 1))*c
      for (let k = 0; k < c; k++) out.data[j++] = data[i + k]
    }
  }
  return out
}

/**
 * Pillow's triangle filter for one axis: from where each output pixel is made, and the weights.
 * @type {(n: number, from: number, to: number, m: number) => {start: number, w: Int32Array}[]}
 */
function triangle(n, from, to, m) {
  from = Math.fround(from)
  const scale = Math.fround(Math.fround(to) - from)/m, reach = Math.max(scale, 1)
  return Array.from({length: m}, (_, i) => {
    const centre = from + (i + .5)*scale
    const start = Math.max(0, Math.trunc(centre - reach + .5))
    const end = Math.min(n, Math.trunc(centre + reach + .5))
    const w = Array.from({length: end - start}, (_, k) =>
      Math.max(0, 1 - Math.abs((k + start - centre + .5)/reach)))
    const total = w.reduce((a, b) => a + b, 0)
    return {start, w: Int32Array.from(w, v => Math.trunc(v/total*(1 << 22) + .5))}
  })
}

/**
 * Each row's pixels anew.
 * @type {(image: Pixels, from: number, to: number, m: number) => Pixels}
 */
function resizeRows({width, height, channels: c, data}, from, to, m) {
  const out = blank(m, height, c), filter = triangle(width, from, to, m)
  let j = 0
  for (let y = 0; y < height; y++)
    for (const {start, w} of filter)
      for (let k = 0; k < c; k++) {
        let sum = 1 << 21
        for (let x = 0, i = (y*width + start)*c + k; x < w.length; x++, i += c) sum += data[i]*w[x]
        out.data[j++] = clip(sum >> 22, 0, 255)
      }
  return out
}

/** Rows become columns. @type {(image: Pixels) => Pixels} */
function transposed({width, height, channels: c, data}) {
  const out = blank(height, width, c)
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let k = 0; k < c; k++) out.data[(x*height + y)*c + k] = data[i++]
  return out
}

/**
 * Pillow's resize(…, BILINEAR, box), which averages where it shrinks.
 * @param {Pixels} image
 * @param {number} width @param {number} height of the result
 * @param {number[]} [box] x0, y0, x1, y1 of the part that is shown
 * @returns {Pixels}
 */
export function resize(image, width, height, box = [0, 0, image.width, image.height]) {
  const [x0, y0, x1, y1] = box
  if (width !== image.width || x0 || x1 !== width) image = resizeRows(image, x0, x1, width)
  if (height !== image.height || y0 || y1 !== height)
    image = transposed(resizeRows(transposed(image), y0, y1, height))
  return image
}

/**
 * What a box in fractions of pixels shows, its border repeated: grefel.base.images.crop_box.
 * @type {(image: Pixels, box: number[], width: number, height: number) => Pixels}
 */
export function cropBox(image, [x0, y0, x1, y1], width, height) {
  const left = Math.floor(x0), top = Math.floor(y0)
  const part = padded(image, left, top, Math.ceil(x1), Math.ceil(y1))
  return resize(part, width, height, [x0 - left, y0 - top, x1 - left, y1 - top])
}

/** Means of k × k pixels: Pillow's reduce. @type {(image: Pixels, k: number) => Pixels} */
export function reduce({width, height, channels: c, data}, k) {
  const out = blank(Math.ceil(width/k), Math.ceil(height/k), c)
  let j = 0
  for (let y = 0; y < height; y += k)
    for (let x = 0; x < width; x += k) {
      const right = Math.min(x + k, width), bottom = Math.min(y + k, height)
      const n = (right - x)*(bottom - y), share = Math.trunc(2**24/n)
      for (let b = 0; b < c; b++) {
        let sum = n >> 1
        for (let yy = y; yy < bottom; yy++)
          for (let xx = x; xx < right; xx++) sum += data[(yy*width + xx)*c + b]
        out.data[j++] = Math.imul(sum, share) >>> 24
      }
    }
  return out
}

/**
 * Pillow's transform(…, AFFINE, BILINEAR) to a square.
 * @param {Pixels} image
 * @param {number} size side of the result
 * @param {number[][]} to (2, 3), from its pixels to those of the image
 * @returns {Pixels}
 */
export function affine({width, height, channels: c, data}, size, [[a, b, tx], [d, e, ty]]) {
  const out = blank(size, size, c)
  for (let v = 0, j = 0; v < size; v++)
    for (let u = 0; u < size; u++, j += c) {
      let x = a*(u + .5) + b*(v + .5) + tx, y = d*(u + .5) + e*(v + .5) + ty
      if (x < 0 || x >= width || y < 0 || y >= height) continue
      x -= .5
      y -= .5
      const left = Math.floor(x), top = Math.floor(y), dx = x - left, dy = y - top
      const x0 = Math.max(left, 0)*c, x1 = Math.min(left + 1, width - 1)*c
      const y0 = Math.max(top, 0)*width*c, y1 = Math.min(top + 1, height - 1)*width*c
      for (let k = 0; k < c; k++) {
        const up = data[y0 + x0 + k] + (data[y0 + x1 + k] - data[y0 + x0 + k])*dx
        const low = data[y1 + x0 + k] + (data[y1 + x1 + k] - data[y1 + x0 + k])*dx
        out.data[j + k] = up + (low - up)*dy
      }
    }
  return out
}

/** Which pixels of a row make each new one, by area. @type {(n: number, m: number) => any[]} */
function areas(n, m) {
  return Array.from({length: m}, (_, i) => {
    const from = i*n/m, to = (i + 1)*n/m, whole = Math.min(n/m, n - from)
    const first = Math.ceil(from), last = Math.floor(to), parts = []
    if (first - from > 1e-3) parts.push([first - 1, (first - from)/whole])
    for (let x = first; x < last; x++) parts.push([x, 1/whole])
    if (to - last > 1e-3) parts.push([last, Math.min(Math.min(to - last, 1), whole)/whole])
    return parts
  })
}

/**
 * OpenCV's resize(…, INTER_AREA), for what becomes smaller.
 * @type {(image: Pixels, width: number, height: number) => Pixels}
 */
export function shrink({width: w, height: h, channels: c, data}, width, height) {
  const out = blank(width, height, c), across = areas(w, width), down = areas(h, height)
  const sum = new Float32Array(width*c), line = new Float32Array(width*c)
  const round = w === 2*width && h === 2*height ? Math.round : roundEven   // as OpenCV halves
  for (let y = 0; y < height; y++) {
    sum.fill(0)
    for (const [yy, beta] of down[y]) {
      line.fill(0)
      for (let x = 0; x < width; x++)
        for (const [xx, alpha] of across[x])
          for (let k = 0; k < c; k++) line[x*c + k] += data[(yy*w + xx)*c + k]*alpha
      for (let i = 0; i < sum.length; i++) sum[i] += beta*line[i]
    }
    for (let i = 0; i < sum.length; i++) out.data[y*width*c + i] = round(sum[i])
  }
  return out
}

/**
 * OpenCV's two neighbours of each new pixel, weights in 1/2048.
 * @type {(n: number, m: number) => number[][]}
 */
function neighbours(n, m) {
  return Array.from({length: m}, (_, i) => {
    const at = Math.fround((i + .5)*(n/m) - .5), x = Math.floor(at), share = Math.fround(at - x)
    return [clip(x, 0, n - 1), clip(x + 1, 0, n - 1),
            roundEven(Math.fround(1 - share)*2048), roundEven(share*2048)]
  })
}

/**
 * OpenCV's resize(…, INTER_LINEAR), for what becomes larger.
 * @type {(image: Pixels, width: number, height: number) => Pixels}
 */
export function enlarge({width: w, height: h, channels: c, data}, width, height) {
  const out = blank(width, height, c), across = neighbours(w, width), down = neighbours(h, height)
  let j = 0
  for (const [y0, y1, b0, b1] of down)
    for (const [x0, x1, a0, a1] of across)
      for (let k = 0; k < c; k++) {
        const up = data[(y0*w + x0)*c + k]*a0 + data[(y0*w + x1)*c + k]*a1
        const low = data[(y1*w + x0)*c + k]*a0 + data[(y1*w + x1)*c + k]*a1
        out.data[j++] = (((b0*(up >> 4)) >> 16) + ((b1*(low >> 4)) >> 16) + 2) >> 2
      }
  return out
}

/**
 * OpenCV's warpAffine(…, INTER_LINEAR) to a square: to the 32nd of a pixel, black outside.
 * @param {Pixels} image
 * @param {number} size side of the result
 * @param {number[][]} to (2, 3), from its pixels to those of the image
 * @returns {Pixels}
 */
export function warp({width, height, channels: c, data}, size, [[a, b, tx], [d, e, ty]]) {
  const out = blank(size, size, c)
  const at = (/** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ k) =>
    x < 0 || y < 0 || x >= width || y >= height ? 0 : data[(y*width + x)*c + k]
  for (let v = 0, j = 0; v < size; v++)
    for (let u = 0; u < size; u++) {
      const x = (roundEven((b*v + tx)*1024) + 16 + roundEven(a*u*1024)) >> 5
      const y = (roundEven((e*v + ty)*1024) + 16 + roundEven(d*u*1024)) >> 5
      const left = x >> 5, top = y >> 5, dx = x & 31, dy = y & 31
      for (let k = 0; k < c; k++) {
        const up = at(left, top, k)*(32 - dx) + at(left + 1, top, k)*dx
        const low = at(left, top + 1, k)*(32 - dx) + at(left + 1, top + 1, k)*dx
        out.data[j++] = (up*(32 - dy) + low*dy + 512) >> 10
      }
    }
  return out
}
