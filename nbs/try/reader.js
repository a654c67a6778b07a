/**
 * From an image to its faces and what each shows: grefel.use.predict, in the browser.
 *
 * @typedef {import('./pixels.js').Pixels} Pixels
 * @typedef {import('./frames.js').Frame} Frame
 * @typedef {import('./frames.js').FrameSettings} FrameSettings
 * @typedef {import('./finder.js').Found} Found
 * @typedef {import('./finder.js').FinderSettings} FinderSettings
 * @typedef {{finder: FinderSettings, frame: FrameSettings,
 *            predict: {LEAST: number, SMALL: number, STRANGE: number, coverage: string,
 *                      risk: number},
 *            words: {ambiguity: [number, string][], familiarity: [number, string][]}}} Settings
 *   what Python's modules hold, written down when the site is built
 * @typedef {{emotion: string, confidence: number, probabilities: number[], primary: number[],
 *            anchor: number[], attentive: number[], sureness: number[], box: number[]|null,
 *            points: number[][]|null, score: number|null, faceFound: boolean, frame: Frame,
 *            evidence: string, reliable: boolean|null, set: string[], ambiguity: number|null,
 *            familiarity: number|null, said: string, doubts: string}} Face
 * @typedef {{run: (feeds: Record<string, any>) => Promise<Record<string, any>>}} Session
 * @typedef {new (type: string, data: Float32Array, dims: number[]) => any} TensorType
 */
import {ambiguity, descending, familiarity, pixelStatistics, predictionSet, temper}
  from './doubts.js'
import {findFaces} from './finder.js'
import {cut, cutNearby, foundFrame, frame} from './frames.js'
import {clip, toGrey} from './pixels.js'

/** A set as a person would say it. @type {(set: string[], classes: string[]) => string} */
export function setInWords(set, classes) {
  if (set.length === classes.length) return 'any expression'
  return set.slice(0, -1).join(', ') + (set.length > 1 ? ' or ' : '') + set[set.length - 1]
}

/** Something to tell the visitor, in a sentence of its own. */
export class Unreadable extends Error {}

export class Reader {
  /**
   * @param {{config: any, metadata: any}} notes from the model's file
   * @param {Settings} settings
   * @param {Session} model @param {Session} finder @param {TensorType} Tensor of ONNX Runtime
   */
  constructor({config, metadata}, settings, model, finder, Tensor) {
    const {flip_test, balanced, grey, face_size} = metadata
    if (flip_test || balanced || !grey || face_size !== config.img_size)
      throw new Error('it must take grey faces, without test-time flip or logit adjustment')
    this.config = config
    this.metadata = metadata
    this.settings = settings
    this.model = model
    this.finder = finder
    this.Tensor = Tensor
    this.size = config.img_size
    this.photos = metadata.photographs ?? {}
  }

  /** @param {Pixels} image RGB @returns {Promise<Face[]>} the largest first */
  async read(image) {
    const {LEAST, SMALL} = this.settings.predict, longer = Math.max(image.width, image.height)
    if (Math.min(image.width, image.height) < LEAST)
      throw new Unreadable(`${image.width} × ${image.height} pixels are too few for a face.`)
    const given = longer <= SMALL || image.width === this.size && image.height === this.size
    const found = given ? [] : await findFaces(image, this.runFinder, this.settings.finder,
      this.settings.frame)
    const grey = toGrey(image), faces = /** @type {Face[]} */ ([])
    if (given) {
      const whole = frame([image.width/2, image.height/2], longer)
      faces.push(await this.answer(cut(grey, whole, this.size), whole, null))
    }
    for (const face of found) {
      const where = foundFrame(face.box, face.points, this.settings.frame)
      faces.push(await this.answer(cutNearby(grey, where, this.size), where, face))
    }
    return faces
  }

  /** YuNet. @type {import('./finder.js').Run} */
  runFinder = async (blob, dims) => {
    const out = await this.finder.run({input: new this.Tensor('float32', blob, dims)})
    return Object.fromEntries(Object.entries(out).map(([name, tensor]) => [name, tensor.data]))
  }

  /** A crop as the model wants it. @param {Pixels} crop */
  prepare(crop) {
    const {mean, std} = this.config, n = crop.data.length, x = new Float32Array(3*n)
    for (let k = 0; k < 3; k++)
      for (let i = 0; i < n; i++) x[k*n + i] = (crop.data[i]/255 - mean[k])/std[k]
    return new this.Tensor('float32', x, [1, 3, this.size, this.size])
  }

  /** What the temperature of a face on a photograph follows. @param {Found|null} found */
  temperature(found) {
    if (!found || !this.photos.temper?.length) return this.metadata.temperature
    const [bias, bySize, byScore] = this.photos.temper
    const size = Math.log2(clip(found.side, 20, 300)/100)
    return Math.exp(bias + bySize*size + byScore*(1 - found.score))
  }

  /** From which confidence on an answer is called reliable. @param {boolean} found */
  threshold(found) {
    const rows = (found && this.photos.temper?.length ? this.photos.risk : this.metadata.risk) ?? []
    const strict = rows.filter(row => row[0] <= this.settings.predict.risk + 1e-9)
    return strict.length ? strict.reduce((a, b) => b[0] > a[0] ? b : a)[1] : null
  }

  /** The threshold of sets. @param {boolean} found */
  setThreshold(found) {
    const {coverage} = this.settings.predict
    const photos = found ? this.photos.sets?.labels?.[coverage] : null
    return photos ?? this.metadata.sets.labels[coverage]
  }

  /** @type {(crop: Pixels, where: Frame, found: Found|null) => Promise<Face>} */
  async answer(crop, where, found) {
    const raw = await this.model.run({images: this.prepare(crop)})
    const out = Object.fromEntries(Object.entries(raw).map(([k, v]) => [k, Array.from(v.data)]))
    const {classes} = this.config, {doubts} = this.metadata
    const probs = temper(out.final_probs, this.temperature(found)), best = descending(probs)[0]
    const vectors = {pixels: pixelStatistics(crop.data, this.size), shape: out.landmarks,
                     embedding: out.embedding}
    const known = doubts ? familiarity(vectors, doubts) : null
    const threshold = this.threshold(!!found), {STRANGE} = this.settings.predict
    const strange = known !== null && known < STRANGE && !found
    const face = {
      emotion: classes[best], confidence: probs[best], probabilities: probs,
      primary: out.primary_probs, anchor: out.anchor_probs, attentive: out.attention_probs,
      sureness: [out.primary_confidence[0], out.correction_confidence[0]],
      box: found && found.box, points: found && found.points, score: found && found.score,
      faceFound: !!found, frame: where,
      evidence: found && this.photos.temper ? 'photographs' : 'crops',
      reliable: threshold === null ? null : probs[best] >= threshold && !strange,
      set: predictionSet(probs, this.setThreshold(!!found)).map(k => classes[k]),
      ambiguity: doubts ? ambiguity(probs, doubts) : null, familiarity: known, said: '', doubts: '',
    }
    face.said = this.inWords(face)
    face.doubts = this.doubtsInWords(face)
    return face
  }

  /** The answer in words, as `Face.said`. @param {Face} face */
  inWords({emotion, confidence, reliable, set}) {
    const doubt = reliable === false ? ', unsure' : ''
    const sure = `${emotion} ${Math.round(100*confidence)}%${doubt}`
    return set.length < 2 ? sure : `${setInWords(set, this.config.classes)}, likeliest ${sure}`
  }

  /** Why an answer may be wrong, as `Face.doubts`. @param {Face} face */
  doubtsInWords({ambiguity: share, familiarity: known, faceFound}) {
    const {words} = this.settings, said = /** @type {string[]} */ ([])
    if (share !== null) said.push(words.ambiguity.findLast(([from]) => share >= from)[1])
    if (known !== null && known < .1 && !faceFound)
      said.push(words.familiarity.findLast(([from]) => known >= from)[1])
    return said.join('; ')
  }
}
