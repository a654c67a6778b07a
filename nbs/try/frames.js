/**
 * The frame around a face that a training image would have: grefel.base.alignment.
 *
 * @typedef {import('./pixels.js').Pixels} Pixels
 * @typedef {[number, number]} Point
 * @typedef {[[number, number, number], [number, number, number]]} Frame
 *   from a square crop, in fractions of its side, to pixels: [[a, −b, tx], [b, a, ty]]
 * @typedef {{CROP_SCALE: number, CROP_SHIFT: Point, FIVE: Point[]}} FrameSettings
 */
import {affine, cropBox, reduce, resize, roundEven} from './pixels.js'

/** @param {Point} middle @param {number} side @param {number} [tilt] degrees @returns {Frame} */
export function frame([x, y], side, tilt = 0) {
  const a = side*Math.cos(tilt*Math.PI/180), b = side*Math.sin(tilt*Math.PI/180)
  return [[a, -b, x - (a - b)/2], [b, a, y - (a + b)/2]]
}

/** Where a point of the crop lies on the image. @type {(point: Point, frame: Frame) => Point} */
export const framePoint = ([u, v], [[a, b, tx], [c, d, ty]]) => [a*u + b*v + tx, c*u + d*v + ty]

/** Side in pixels and tilt in degrees. @type {(frame: Frame) => {side: number, tilt: number}} */
export const frameSize = ([[a], [c]]) =>
  ({side: Math.hypot(a, c), tilt: Math.atan2(c, a)*180/Math.PI})

/** By the box alone. @type {(box: number[], tilt: number, set: FrameSettings) => Frame} */
function faceFrame([x0, y0, x1, y1], tilt, {CROP_SCALE, CROP_SHIFT}) {
  const side = Math.sqrt((x1 - x0)*(y1 - y0))
  const [[a, b], [c, d]] = frame([0, 0], side, tilt), [u, v] = CROP_SHIFT
  return frame([(x0 + x1)/2 + a*u + b*v, (y0 + y1)/2 + c*u + d*v], CROP_SCALE*side, tilt)
}

/**
 * By five points, to lie as those of training faces.
 * @type {(points: Point[], five: Point[]) => Frame}
 */
function alignFrame(points, five) {
  const mean = p => [0, 1].map(k => p.reduce((sum, q) => sum + q[k], 0)/p.length)
  const mx = mean(five), my = mean(points)
  let dot = 0, cross = 0, norm = 0
  five.forEach(([u, v], i) => {
    const dx = u - mx[0], dy = v - mx[1], ex = points[i][0] - my[0], ey = points[i][1] - my[1]
    dot += dx*ex + dy*ey
    cross += dx*ey - dy*ex
    norm += dx*dx + dy*dy
  })
  const a = dot/norm, b = cross/norm
  return [[a, -b, my[0] - (a*mx[0] - b*mx[1])], [b, a, my[1] - (b*mx[0] + a*mx[1])]]
}

/**
 * Half way between what the points say and what the box says.
 * @type {(box: number[], points: Point[], set: FrameSettings) => Frame}
 */
export function foundFrame(box, points, set) {
  const byPoints = alignFrame(points, set.FIVE), {side, tilt} = frameSize(byPoints)
  const byBox = faceFrame(box, tilt, set)
  const [x0, y0] = framePoint([.5, .5], byPoints), [x1, y1] = framePoint([.5, .5], byBox)
  return frame([(x0 + x1)/2, (y0 + y1)/2], Math.sqrt(side*frameSize(byBox).side), tilt)
}

/** What a frame shows, upright. @type {(image: Pixels, frame: Frame, size: number) => Pixels} */
export function cut(image, where, size) {
  const {side, tilt} = frameSize(where), [[a, b, x], [c, d, y]] = where
  if (Math.abs(tilt) < 1e-3) return cropBox(image, [x, y, x + side, y + side], size, size)
  const unit = /** @type {Point[]} */ ([[0, 0], [1, 0], [1, 1], [0, 1]])
  const corners = unit.map(p => framePoint(p, where))
  const low = [0, 1].map(k => Math.floor(Math.min(...corners.map(p => p[k]))) - 2)
  const high = [0, 1].map(k => Math.ceil(Math.max(...corners.map(p => p[k]))) + 2)
  const less = Math.max(1, side/(2*size))
  const around = [0, 1].map(k => Math.max(1, roundEven((high[k] - low[k])/less)))
  const part = cropBox(image, [...low, ...high], around[0], around[1])
  const detail = side > size ? 2*size : size
  const [sx, sy] = [0, 1].map(k => around[k]/(high[k] - low[k]))
  const turned = affine(part, detail, [[sx*a/detail, sx*b/detail, sx*(x - low[0])],
                                       [sy*c/detail, sy*d/detail, sy*(y - low[1])]])
  return resize(turned, size, size)
}

/**
 * The same from a large image, most of which need not be looked at: Predictor's view.
 * @type {(image: Pixels, frame: Frame, size: number) => Pixels}
 */
export function cutNearby(image, where, size) {
  const {side} = frameSize(where), k = Math.max(1, Math.trunc(side/(2*size)))
  const [mx, my] = framePoint([.5, .5], where), wide = Math.ceil(2.2*side/k)
  const small = k > 1 ? reduce(image, k) : image
  const x = Math.floor((mx - 1.1*side)/k), y = Math.floor((my - 1.1*side)/k)
  const view = cropBox(small, [x, y, x + wide, y + wide], wide, wide)
  const [[a, b, tx], [c, d, ty]] = where
  return cut(view, [[a/k, b/k, (tx - x*k)/k], [c/k, d/k, (ty - y*k)/k]], size)
}
