/**
 * Where the faces are: YuNet, run and read as grefel.use.finder does with OpenCV.
 *
 * @typedef {import('./pixels.js').Pixels} Pixels
 * @typedef {import('./frames.js').Point} Point
 * @typedef {{box: number[], points: Point[], score: number, side: number}} Found
 * @typedef {{ONE_PASS: number, ENLARGED: number, SECOND: number, APART: number, MIN_SCORE: number,
 *            ASIDE: number, SHARP: number, LOOK: number}} FinderSettings
 * @typedef {import('./frames.js').FrameSettings} FrameSettings
 * @typedef {(blob: Float32Array, dims: number[]) => Promise<Record<string, Float32Array>>} Run
 */
import {cut, foundFrame, frame, framePoint, frameSize} from './frames.js'
import {enlarge, roundEven, shrink, warp} from './pixels.js'

/** One digit after the point. @param {number} v */
const tenth = v => roundEven(v*10)/10

/**
 * Pixels looked at for each pixel of the image, ascending.
 * @type {(image: Pixels, set: FinderSettings) => number[]}
 */
export function searchScales({width, height}, {ONE_PASS, ENLARGED, SECOND}) {
  const longer = Math.max(width, height)
  const first = longer > ONE_PASS ? ONE_PASS/longer : Math.max(1, ENLARGED/longer)
  return longer > 1.5*ONE_PASS ? [first, Math.min(1, SECOND/longer)] : [first]
}

/** At another scale. @type {(image: Pixels, scale: number) => Pixels} */
function scaled(image, scale) {
  const width = Math.max(1, roundEven(scale*image.width))
  const height = Math.max(1, roundEven(scale*image.height))
  if (width === image.width && height === image.height) return image
  return (scale < 1 ? shrink : enlarge)(image, width, height)
}

/**
 * What YuNet gets: blue, green, red, 0 to 255, black up to whole blocks of 32 pixels.
 * @type {(image: Pixels) => {blob: Float32Array, dims: number[]}}
 */
function asBlob({width, height, data}) {
  const w = Math.ceil(width/32)*32, h = Math.ceil(height/32)*32, blob = new Float32Array(3*w*h)
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i += 3)
      for (let k = 0; k < 3; k++) blob[(k*h + y)*w + x] = data[i + 2 - k]
  return {blob, dims: [1, 3, h, w]}
}

/**
 * YuNet's answer as boxes: left, top, width, height, five points, score.
 * @type {(out: Record<string, Float32Array>, w: number, h: number, least: number) => number[][]}
 */
function decode(out, w, h, least) {
  const rows = []
  for (const stride of [8, 16, 32]) {
    const [cls, obj, box, points] = ['cls', 'obj', 'bbox', 'kps'].map(n => out[`${n}_${stride}`])
    const columns = w/stride
    for (let i = 0; i < columns*h/stride; i++) {
      const score = Math.sqrt(Math.min(Math.max(cls[i], 0), 1)*Math.min(Math.max(obj[i], 0), 1))
      if (score < least) continue
      const x = i % columns, y = Math.floor(i/columns)
      const bw = Math.exp(box[4*i + 2])*stride, bh = Math.exp(box[4*i + 3])*stride
      const five = Array.from({length: 10}, (_, k) => (points[10*i + k] + (k % 2 ? y : x))*stride)
      rows.push([(x + box[4*i])*stride - bw/2, (y + box[4*i + 1])*stride - bh/2, bw, bh,
                 ...five, score])
    }
  }
  return rows
}

/**
 * Overlap over union, of boxes in whole pixels as OpenCV takes them.
 * @type {(a: number[], b: number[]) => number}
 */
function overlap(a, b) {
  const [p, q] = [a, b].map(v => v.slice(0, 4).map(Math.trunc))
  const w = Math.min(p[0] + p[2], q[0] + q[2]) - Math.max(p[0], q[0])
  const h = Math.min(p[1] + p[3], q[1] + q[3]) - Math.max(p[1], q[1])
  const both = Math.max(w, 0)*Math.max(h, 0)
  return both/Math.max(p[2]*p[3] + q[2]*q[3] - both, 1e-9)
}

/** Of boxes on the same face the surest. @type {(rows: number[][]) => number[][]} */
function suppress(rows) {
  const kept = /** @type {number[][]} */ ([])
  for (const row of [...rows].sort((a, b) => b[14] - a[14]))
    if (kept.every(k => overlap(row, k) <= .3)) kept.push(row)
  return kept
}

/**
 * The share of the smaller of two boxes that lies in the other.
 * @type {(a: number[], b: number[]) => number}
 */
function covered(a, b) {
  const [w, h] = [0, 1].map(k => Math.max(0, Math.min(a[k + 2], b[k + 2]) - Math.max(a[k], b[k])))
  const area = v => (v[2] - v[0])*(v[3] - v[1])
  return w*h/Math.max(1e-9, Math.min(area(a), area(b)))
}

/**
 * What YuNet sees on one copy of an image, each face once.
 * @type {(copy: Pixels, run: Run, least: number) => Promise<number[][]>}
 */
async function look(copy, run, least) {
  const {blob, dims} = asBlob(copy)
  return suppress(decode(await run(blob, dims), dims[3], dims[2], least))
}

/**
 * The same face, its points turned to the lean that three looks suggest: straight on, and with the
 * face turned to either side.
 * @param {Pixels} image @param {Found} face @param {Run} run YuNet
 * @param {FinderSettings} set @param {FrameSettings} frames
 * @returns {Promise<Found>}
 */
async function withLean(image, face, run, {ASIDE, SHARP, LOOK}, frames) {
  const where = foundFrame(face.box, face.points, frames), {side, tilt} = frameSize(where)
  if (side < 4) return face
  const middle = framePoint([.5, .5], where), wide = roundEven(1.4*LOOK)
  const part = cut(image, frame(middle, 2.8*side), wide)
  let weight = 0, total = 0
  for (const turn of [-ASIDE, 0, ASIDE]) {
    const to = frame([wide/2, wide/2], LOOK, turn).map(([a, b, t]) => [a/LOOK, b/LOOK, t])
    const copy = warp(part, LOOK, to)
    const near = (await look(copy, run, .3)).filter(([x, y, w, h]) =>
      Math.hypot(x + w/2 - LOOK/2, y + h/2 - LOOK/2) < LOOK/6)
    if (!near.length) continue
    const row = near.reduce((a, b) => b[14] > a[14] ? b : a), share = row[14]**SHARP
    weight += share
    total += share*(turn + Math.atan2(row[7] - row[5], row[6] - row[4])*180/Math.PI)
  }
  if (!weight) return face
  const [[a, b], [c, d]] = frame([0, 0], 1, total/weight - tilt), [mx, my] = middle
  const points = face.points.map(([x, y]) => /** @type {Point} */ ([
    tenth(a*(x - mx) + b*(y - my) + mx), tenth(c*(x - mx) + d*(y - my) + my)]))
  return {...face, points}
}

/**
 * Every face on an image, the largest first.
 * @param {Pixels} image RGB
 * @param {Run} run YuNet
 * @param {FinderSettings} set
 * @param {FrameSettings} frames
 * @returns {Promise<Found[]>}
 */
export async function findFaces(image, run, set, frames) {
  const seen = /** @type {Found[]} */ ([])
  for (const scale of searchScales(image, set)) {
    const copy = scaled(image, scale), sx = copy.width/image.width, sy = copy.height/image.height
    for (const row of await look(copy, run, set.MIN_SCORE)) {
      const [x, y, w, h] = row
      const mx = (x + w/2)/sx, my = (y + h/2)/sy, rx = w/scale/2, ry = h/scale/2
      const box = [mx - rx, my - ry, mx + rx, my + ry].map(tenth)
      const points = Array.from({length: 5}, (_, i) => /** @type {Point} */ (
        [tenth(row[4 + 2*i]/sx), tenth(row[5 + 2*i]/sy)]))
      const side = Math.sqrt((box[2] - box[0])*(box[3] - box[1]))
      seen.push({box, points, score: roundEven(row[14]*1e3)/1e3, side})
    }
  }
  const kept = /** @type {Found[]} */ ([])
  for (const face of seen.sort((a, b) => b.score - a.score))
    if (kept.every(k => covered(face.box, k.box) <= set.APART)) kept.push(face)
  const inside = (/** @type {Found} */ {box: [x0, y0, x1, y1]}) =>
    x0 + x1 >= 0 && x0 + x1 < 2*image.width && y0 + y1 >= 0 && y0 + y1 < 2*image.height
  const faces = kept.filter(inside).sort((a, b) => b.side - a.side)
  for (const i of faces.keys()) faces[i] = await withLean(image, faces[i], run, set, frames)
  return faces
}
