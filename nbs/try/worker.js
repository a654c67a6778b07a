/**
 * The work, beside the page so that the page stays quick: loads the models, answers images.
 *
 * It gets {load: base} once, then {id, image} with a file, a blob or a camera's frame; it posts
 * {loaded, bytes, total}, {ready}, {id, faces, width, height, ms} or {id, error}.
 */
import {fromCanvas} from './pixels.js'
import {readNotes} from './notes.js'
import {Reader, Unreadable} from './reader.js'

const MOST_PIXELS = 100e6
const CACHE = 'grefel-try-it'

/** @type {Reader} */
let reader

/**
 * The bytes of a file of this site, from the browser's own cache if they're there.
 * @type {(url: string, progress: (bytes: number) => void) => Promise<Uint8Array>}
 */
async function bytesOf(url, progress) {
  const cache = await self.caches?.open(CACHE).catch(() => null)
  let response = await cache?.match(url)
  if (!response) {
    response = await fetch(url)
    if (!response.ok) throw new Error(`${new URL(url).pathname} isn't there (${response.status})`)
    await cache?.put(url, response.clone()).catch(() => null)   // a full disk is no reason to stop
  }
  const parts = [], stream = response.body.getReader()
  let total = 0
  for (let {done, value} = await stream.read(); !done; {done, value} = await stream.read()) {
    parts.push(value)
    total += value.length
    progress(value.length)
  }
  const bytes = new Uint8Array(total)
  let at = 0
  for (const part of parts) {
    bytes.set(part, at)
    at += part.length
  }
  return bytes
}

/** Everything that is needed, in this order. @param {string} base the folder of this module */
async function load(base) {
  const settings = await (await fetch(new URL('settings.json', base))).json()
  const total = Object.values(settings.files).reduce((sum, f) => sum + f.bytes, 0)
  let arrived = 0
  const progress = n => self.postMessage({loaded: arrived += n, total})
  const [wasm, model, finder] = await Promise.all(['runtime', 'model', 'finder'].map(name => {
    const {path, digest} = settings.files[name]
    return bytesOf(new URL(`${path}?${digest}`, base).href, progress)
  }))
  // @ts-ignore: it lies there in the built site
  const ort = await import('./onnxruntime/ort.wasm.bundle.min.mjs')
  ort.env.wasm.wasmBinary = wasm
  ort.env.wasm.numThreads = self.crossOriginIsolated ?   // else there are no threads to be had
    Math.min(4, navigator.hardwareConcurrency) : 1
  const notes = readNotes(model)
  const create = (/** @type {Uint8Array} */ file) => ort.InferenceSession.create(file)
  reader = new Reader(notes, settings, await create(model), await create(finder), ort.Tensor)
  return {ready: true, classes: notes.config.classes, risk: settings.predict.risk}
}

/** A file as the browser decodes it, upright. @param {Blob} file @returns {Promise<ImageBitmap>} */
async function bitmapOf(file) {
  if (!file.size) throw new Unreadable('That file is empty.')
  const asStored = /** @type {ImageBitmapOptions} */ (
    {imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none'})
  try { return await createImageBitmap(file, asStored) }
  catch { throw new Unreadable("That isn't an image this browser can read.") }
}

/** RGB, on white where it's transparent. @param {ImageBitmap} bitmap */
function pixelsOf(bitmap) {
  const {width, height} = bitmap
  if (width*height > MOST_PIXELS)
    throw new Unreadable(`That image has ${Math.round(width*height/1e6)} megapixels, which are
      more than ${MOST_PIXELS/1e6}.`)
  try {
    const drawing = new OffscreenCanvas(width, height).getContext('2d', {willReadFrequently: true})
    drawing.fillStyle = 'white'
    drawing.fillRect(0, 0, width, height)
    drawing.drawImage(bitmap, 0, 0)
    return fromCanvas(drawing.getImageData(0, 0, width, height))
  } catch {
    throw new Unreadable(`${width} × ${height} pixels are too many for this browser.`)
  } finally { bitmap.close() }
}

self.onmessage = async ({data}) => {
  const {id} = data
  try {
    if (data.load) return self.postMessage(await load(data.load))
    const start = performance.now(), {image: given} = data
    const image = pixelsOf(given instanceof Blob ? await bitmapOf(given) : given)
    const faces = await reader.read(image)
    const {width, height} = image
    self.postMessage({id, faces, width, height, ms: performance.now() - start})
  } catch (error) {
    self.postMessage({id, error: error.message, expected: error instanceof Unreadable})
  }
}
