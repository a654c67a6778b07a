/**
 * Sets, ambiguity and familiarity: grefel.measure.sets and grefel.measure.doubts.
 *
 * @typedef {{shape: number[], float32: string}} Packed
 * @typedef {{mean: Packed, basis: Packed, noise: number, typical: number}} Part
 * @typedef {Record<string, ArrayLike<number>>} Vectors what is known about a face, by part
 * @typedef {{crowd_temperature: number, parts: Record<string, Part>, levels: number[],
 *            strange: number[]}} Doubts
 */

/** p^(1/T), normalised. @type {(probs: number[], temperature: number) => number[]} */
export function temper(probs, temperature) {
  const z = probs.map(p => Math.log(Math.max(p, 1e-12))/temperature), top = Math.max(...z)
  const raised = z.map(v => Math.exp(v - top)), total = raised.reduce((a, b) => a + b)
  return raised.map(v => v/total)
}

/** Indices from the largest value down. @type {(values: number[]) => number[]} */
export const descending = values => values.map((_, i) => i).sort((i, j) => values[j] - values[i])

/**
 * The classes that keep a promise, likeliest first: those whose 1 − p is small enough.
 * @type {(probs: number[], threshold: number) => number[]}
 */
export const predictionSet = (probs, threshold) =>
  descending(probs).filter((k, rank) => !rank || 1 - probs[k] <= threshold + 1e-9)

/**
 * The share of people who would say otherwise.
 * @type {(probs: number[], doubts: Doubts) => number}
 */
export const ambiguity = (probs, doubts) => 1 - Math.max(...temper(probs, doubts.crowd_temperature))

const mean = v => v.reduce((a, b) => a + b, 0)/v.length

/** @type {(sorted: number[], q: number) => number} */
function quantile(sorted, q) {
  const at = q*(sorted.length - 1), i = Math.floor(at)
  return sorted[i] + (at - i)*((sorted[i + 1] ?? sorted[i]) - sorted[i])
}

/**
 * A grid's rows by a function of row and column.
 * @type {(h: number, w: number, f: (y: number, x: number) => number) => number[][]}
 */
const grid = (h, w, f) =>
  Array.from({length: h}, (_, y) => Array.from({length: w}, (_, x) => f(y, x)))

/**
 * What is strange about the pixels themselves.
 * @type {(face: Uint8Array, size: number) => number[]}
 */
export function pixelStatistics(face, size) {
  const s = size, x = grid(s, s, (r, c) => face[r*s + c]/255), all = x.flat()
  const log = v => Math.log(v + 1e-3)
  const sizes = rows => {
    const d = rows.flat().sort((a, b) => a - b)
    return [mean(d), quantile(d, .5), quantile(d, .95)].map(log)
  }
  const second = g => grid(g.length - 2, g.length - 2, (r, c) => Math.abs(
    4*g[r + 1][c + 1] - g[r][c + 1] - g[r + 2][c + 1] - g[r + 1][c] - g[r + 1][c + 2]))
  const halved = g => grid(g.length/2, g.length/2, (r, c) =>
    (g[2*r][2*c] + g[2*r][2*c + 1] + g[2*r + 1][2*c] + g[2*r + 1][2*c + 1])/4)
  const right = grid(s, s - 1, (r, c) => Math.abs(x[r][c + 1] - x[r][c]))
  const down = grid(s - 1, s, (r, c) => Math.abs(x[r + 1][c] - x[r][c]))
  const cross = grid(s - 1, s - 1, (r, c) =>
    Math.abs(x[r + 1][c + 1] - x[r][c + 1] - x[r + 1][c] + x[r][c]))
  const half = halved(x), middle = mean(all), sorted = [...all].sort((a, b) => a - b)
  const seams = mean(right.flatMap(row => row.filter((_, c) => c % 8 === 7)))
  const within = (y0, y1, x0, x1) => mean(x.slice(y0, y1).flatMap(row => row.slice(x0, x1)))
  const h = s/2, q = s/4
  return [middle, Math.sqrt(mean(all.map(v => (v - middle)**2))),
          ...sizes(right), ...sizes(down), ...sizes(second(x)), ...sizes(cross),
          log(mean(second(half).flat())), log(mean(second(halved(half)).flat())),
          log(seams) - log(mean(right.flat())),
          within(0, h, 0, s) - within(h, s, 0, s), within(0, s, 0, h) - within(0, s, h, s),
          within(q, s - q, q, s - q) - middle, quantile(sorted, .02), quantile(sorted, .98)]
}

/** @param {Packed} packed base64 of numbers @returns {Float32Array} */
const unpack = ({float32}) =>
  new Float32Array(Uint8Array.from(atob(float32), c => c.charCodeAt(0)).buffer)

/**
 * Squared distance from known faces, in standard deviations.
 * @type {(x: ArrayLike<number>, part: Part) => number}
 */
function gaussianDistance(x, part) {
  const centre = unpack(part.mean), basis = unpack(part.basis), D = centre.length
  const d = Array.from(x, (v, i) => v - centre[i])
  let inside = 0, explained = 0
  for (let start = 0; start < basis.length; start += D) {
    let dot = 0, norm = 0
    for (let i = 0; i < D; i++) {
      dot += d[i]*basis[start + i]
      norm += basis[start + i]**2
    }
    inside += dot*dot
    explained += dot*dot/norm
  }
  const outside = d.reduce((sum, v) => sum + v*v, 0) - explained
  return inside + Math.max(outside, 0)/part.noise
}

/** Between the points of a curve. @type {(x: number, xs: number[], ys: number[]) => number} */
function interpolate(x, xs, ys) {
  const i = xs.findIndex(v => v > x)
  if (i === 0) return ys[0]
  if (i < 0) return ys[ys.length - 1]
  return ys[i - 1] + (ys[i] - ys[i - 1])*(x - xs[i - 1])/(xs[i] - xs[i - 1])
}

/**
 * The share of known faces that are stranger.
 * @type {(vectors: Vectors, doubts: Doubts) => number}
 */
export function familiarity(vectors, doubts) {
  const total = Object.entries(doubts.parts).reduce((sum, [name, part]) =>
    sum + gaussianDistance(vectors[name], part)/part.typical, 0)
  return 1 - interpolate(total, doubts.strange, doubts.levels)
}
