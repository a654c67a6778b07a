/**
 * What a visitor sees: gets an image, hands it to the worker, shows the answer.
 *
 * @typedef {import('./reader.js').Face} Face
 * @typedef {{id: number, faces: Face[], width: number, height: number, ms: number}} Answer
 */
import {descending} from './doubts.js'
import {setInWords} from './reader.js'

const BASE = new URL('.', import.meta.url).href
const CAMERA_SIDE = 480        // pixels of a camera's frame that are looked at
const EXAMPLES = {
  clear: ['A clear one', 'Drawing of a surprised face'],
  unsure: ['An unsure one', 'Drawing of a face between sadness and fear'],
  group: ['Several', 'Drawing of six faces'],
}
const OPINIONS = [['probabilities', 'Final'], ['primary', 'Primary'], ['anchor', 'Anchors'],
                  ['attentive', 'Attentive']]

const root = document.getElementById('try-it')
const $ = (/** @type {string} */ css) => /** @type {any} */ (root.querySelector(css))
const escape = (/** @type {string} */ text) => text.replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`)
const percent = (/** @type {number} */ p) =>
  p < .01 ? '<1%' : p > .99 ? '>99%' : `${Math.round(100*p)}%`
const megabytes = (/** @type {number} */ bytes) => `${(bytes/1e6).toFixed(1)} MB`
const capital = (/** @type {string} */ text) => text[0].toUpperCase() + text.slice(1)

const PAGE = `
<div class="try-drop">
  <p><strong>Drop an image here</strong>, paste one, or</p>
  <p class="try-buttons">
    <label class="btn btn-primary">Choose an image<input type="file" accept="image/*"
      class="visually-hidden"></label>
    <button type="button" class="btn btn-outline-primary try-camera">Use the camera</button>
  </p>
  <p class="try-examples">${Object.entries(EXAMPLES).map(([name, [title, alt]]) => `
    <button type="button" data-example="${name}"><img src="${BASE}${name}.png" alt="${alt}"
      width="480" height="360" loading="lazy"><span>${title}</span></button>`).join('')}
  </p>
</div>
<p class="try-privacy"></p>
<div class="try-loading" hidden>
  <label>Loading the model <progress max="1" value="0"></progress></label> <span></span></div>
<p class="try-sorry" role="alert"></p>
<p class="try-status" role="status"></p>
<figure class="try-photo" hidden><canvas role="img"></canvas>
  <svg aria-hidden="true" preserveAspectRatio="none"></svg></figure>
<div class="try-faces"></div>
<p class="try-proof"></p>`

/** @type {Worker|null} */
let worker = null
/** @type {Promise<void>|null} */
let loading = null
const known = {classes: /** @type {string[]} */ ([]), risk: NaN}   // of the model, once it's there
const waiting = new Map()
let asked = 0
let requests = 0, watching = false, camera = /** @type {MediaStream|null} */ (null)

/** Say what is wrong, or nothing. @param {string} [text] */
function sorry(text = '') {
  $('.try-sorry').textContent = text
  if (text) $('.try-status').textContent = ''
}

/** Why the model cannot work in this browser, if so. */
function cannotRun() {
  if (typeof WebAssembly !== 'object')
    return "This browser can't run WebAssembly, which the model needs."
  if (typeof OffscreenCanvas !== 'function' || typeof Worker !== 'function' || ![].findLast)
    return 'This browser is too old for this page. Those of 2023 and later can show it.'
}

/** The model, loaded on first use. @returns {Promise<void>} */
function load() {
  loading ??= new Promise((done, fail) => {
    const why = cannotRun()
    if (why) return fail(new Error(why))
    $('.try-loading').hidden = false
    worker = new Worker(new URL('worker.js', BASE), {type: 'module'})
    worker.onerror = () =>
      fail(new Error("The model's program couldn't be loaded. Are you online? Try again."))
    worker.onmessage = ({data}) => {
      if (data.total) showProgress(data)
      else if (data.ready) done(data)
      else if (data.id !== undefined) answered(data)
      else fail(new Error(`The model couldn't be loaded (${data.error}). Try again.`))
    }
    worker.postMessage({load: BASE})
  }).then(ready => {
    Object.assign(known, ready)
    watchRequests()
  }).catch(error => {
    worker?.terminate()
    worker = loading = null
    throw error
  }).finally(() => { $('.try-loading').hidden = true })
  return loading
}

/** @param {{loaded: number, total: number}} data */
function showProgress({loaded, total}) {
  $('.try-loading progress').value = loaded/total
  $('.try-loading span').textContent = `${megabytes(loaded)} of ${megabytes(total)}`
}

/** Count what this page asks of any server from now on. */
function watchRequests() {
  if (watching) return
  watching = true
  new PerformanceObserver(list => {
    requests += list.getEntries().length
    prove()
  }).observe({type: 'resource'})
  prove()
}

function prove() {
  $('.try-proof').textContent = `Requests since the model was loaded: ${requests}. ` +
    'You can cut the network now; the page goes on working.'
}

/** Hand an image to the worker. @param {Blob|ImageBitmap} image @returns {Promise<Answer>} */
function ask(image) {
  const id = asked++
  worker.postMessage({id, image}, image instanceof Blob ? [] : [image])
  return new Promise((done, fail) => waiting.set(id, {done, fail}))
}

/** @param {any} data */
function answered(data) {
  const {done, fail} = waiting.get(data.id)
  waiting.delete(data.id)
  if (!data.error) done(data)
  else fail(new Error(data.expected ? data.error : `That image couldn't be read (${data.error}).`))
}

/** Draw what is looked at. @param {CanvasImageSource & {width: number, height: number}} image */
function drawPhoto(image) {
  const canvas = $('.try-photo canvas')
  const shrink = Math.min(1, 1600/Math.max(image.width, image.height))
  canvas.width = Math.max(1, Math.round(image.width*shrink))
  canvas.height = Math.max(1, Math.round(image.height*shrink))
  canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height)
  $('.try-photo').hidden = false
}

/** Boxes over the photograph. @param {Answer} answer */
function drawBoxes({faces, width, height}) {
  const unit = Math.max(width, height)/100, boxes = faces.filter(f => f.box)
  $('.try-photo svg').setAttribute('viewBox', `0 0 ${width} ${height}`)
  $('.try-photo svg').innerHTML = boxes.map(({box: [x0, y0, x1, y1], reliable}, i) => `
    <rect x="${x0}" y="${y0}" width="${x1 - x0}" height="${y1 - y0}" rx="${unit/2}"
      class="${reliable ? '' : 'try-unsure'}" stroke-width="${unit*.6}"
      stroke-dasharray="${reliable ? '' : `${2*unit} ${unit}`}"/>
    ${boxes.length > 1 ? `<circle cx="${x0}" cy="${y0}" r="${2.2*unit}"/>
    <text x="${x0}" y="${y0}" font-size="${2.8*unit}" text-anchor="middle"
      dominant-baseline="central">${i + 1}</text>` : ''}`).join('')
}

/** One face in words and bars. @param {Face} face @param {number} i @param {number} n */
function card(face, i, n) {
  const {classes, risk} = known
  const either = setInWords(face.set, classes)
  const title = `${n > 1 ? `Face ${i + 1}: ` : ''}${n > 1 ? either : capital(either)}`
  const order = descending(face.probabilities)
  const bar = (/** @type {number} */ p) =>
    `<td style="--p: ${(100*p).toFixed(1)}%"><span>${escape(percent(p))}</span></td>`
  const why = face.reliable === false ? `That's too little for a promise: of surer answers at most
    ${percent(risk)} were wrong. ` : ''
  const given = face.faceFound ? '' : 'An image this small is taken to be a face already. '
  return `<article class="${face.reliable ? '' : 'try-unsure'}">
    <h3>${escape(title)}${face.reliable ? '' : ' <span class="try-badge">unsure</span>'}</h3>
    <p>Likeliest ${escape(face.emotion)}, ${escape(percent(face.confidence))}. ${given}${why}${
      capital(escape(face.doubts))}.</p>
    <table><caption class="visually-hidden">Probability of each expression by opinion</caption>
      <thead><tr><th scope="col">Expression</th>${OPINIONS.map(([, name]) =>
        `<th scope="col">${name}</th>`).join('')}</tr></thead>
      <tbody>${order.map(k => `<tr class="${face.set.includes(classes[k]) ? 'try-in' : ''}">
        <th scope="row">${escape(classes[k])}</th>
        ${OPINIONS.map(([key]) => bar(face[key][k])).join('')}</tr>`).join('')}</tbody>
    </table></article>`
}

/** @param {Answer} answer */
function show(answer) {
  const {faces} = answer, n = faces.length
  drawBoxes(answer)
  $('.try-faces').innerHTML = n ? faces.map((f, i) => card(f, i, n)).join('') : `<article>
    <h3>No face found</h3><p>So nothing was read. Faces that are very small, turned away or covered
    aren't always found.</p></article>`
  const seen = n === 0 ? 'No face found' : n === 1 ? 'One face' : `${n} faces`
  $('.try-photo canvas').setAttribute('aria-label', `The image. ${seen}.`)
  return seen
}

/** Read an image once. @param {() => Promise<Blob|ImageBitmap>} get */
async function readOnce(get) {
  stopCamera()
  sorry()
  $('.try-status').textContent = 'One moment …'
  try {
    const [image] = await Promise.all([get(), load()])
    const preview = image instanceof Blob ? await createImageBitmap(image).catch(() => null) :
      await createImageBitmap(image)
    if (preview) drawPhoto(preview)
    const answer = await ask(image)
    const seen = show(answer), said = answer.faces.map(f => f.said).join('; ')
    $('.try-status').textContent = `${seen}, read in ${(answer.ms/1000).toFixed(2)} seconds` +
      `${said ? `: ${said}` : ''}.`
  } catch (error) {
    $('.try-photo').hidden = true
    $('.try-faces').innerHTML = ''
    sorry(error.message)
  }
}

const NO_CAMERA = {
  NotAllowedError: "The camera wasn't allowed. Allow it in the address bar and press again.",
  NotFoundError: 'No camera was found.',
  NotReadableError: 'The camera is in use by another program.',
}

async function startCamera() {
  sorry()
  const video = document.createElement('video')
  try {
    if (!navigator.mediaDevices) throw new Error('Browsers lend the camera to pages on https only.')
    const wanted = {width: {ideal: 640}, facingMode: 'user'}
    camera = await navigator.mediaDevices.getUserMedia({video: wanted})
    Object.assign(video, {srcObject: camera, muted: true, playsInline: true})
    await Promise.all([video.play(), load()])
  } catch (error) {
    stopCamera()
    return sorry(NO_CAMERA[error.name] ?? error.message)
  }
  $('.try-camera').textContent = 'Stop the camera'
  await follow(video, camera)
}

/**
 * Answer frame after frame until the camera stops.
 * @type {(video: HTMLVideoElement, stream: MediaStream) => Promise<void>}
 */
async function follow(video, stream) {
  const scale = Math.min(1, CAMERA_SIDE/Math.max(video.videoWidth, video.videoHeight))
  const size = {resizeWidth: Math.round(scale*video.videoWidth),
                resizeHeight: Math.round(scale*video.videoHeight)}
  const times = /** @type {number[]} */ ([])
  const look = async () => {
    const frame = await createImageBitmap(video, size), picture = await createImageBitmap(frame)
    return {picture, answer: await ask(frame)}
  }
  $('.try-status').setAttribute('aria-live', 'off')   // else a screen reader never falls silent
  try {
    let next = look()
    while (camera === stream) {
      const {picture, answer} = await next
      if (camera !== stream) break
      next = look()                                    // the worker goes on while we draw
      next.catch(() => {})
      drawPhoto(picture)
      picture.close()
      const seen = show(answer)
      times.push(performance.now())
      if (times.length > 20) times.shift()
      const rate = 1000*(times.length - 1)/(times[times.length - 1] - times[0])
      $('.try-status').textContent = `${seen}, ${rate ? rate.toFixed(0) : '–'} frames a second`
      await new Promise(requestAnimationFrame)
    }
  } catch (error) {
    if (camera === stream) sorry(error.message)
  }
  if (camera === stream) stopCamera()
}

function stopCamera() {
  camera?.getTracks().forEach(track => track.stop())
  camera = null
  $('.try-camera').textContent = 'Use the camera'
  $('.try-status').removeAttribute('aria-live')
}

/** The first image among what was dropped or pasted. @param {DataTransfer|null} data */
function take(data) {
  const file = data?.files?.[0]
  if (file) readOnce(async () => file)
  else sorry("That isn't an image file. Save it first, then drop the file here.")
}

function listen() {
  const drop = $('.try-drop')
  $('input').onchange = ({target}) => {
    if (target.files[0]) readOnce(async (file = target.files[0]) => file)
    target.value = ''
  }
  $('.try-camera').onclick = () => camera ? stopCamera() : startCamera()
  for (const button of root.querySelectorAll('[data-example]'))
    /** @type {any} */ (button).onclick = () => readOnce(async () => {
      const image = button.querySelector('img')
      image.loading = 'eager'
      await image.decode()
      return createImageBitmap(image)
    })
  root.ondragover = event => {
    event.preventDefault()
    drop.classList.add('try-over')
  }
  root.ondragleave = () => drop.classList.remove('try-over')
  root.ondrop = event => {
    event.preventDefault()
    drop.classList.remove('try-over')
    take(event.dataTransfer)
  }
  document.addEventListener('paste', event => {
    if (event.clipboardData?.files.length) take(event.clipboardData)
  })
}

async function start() {
  root.innerHTML = PAGE
  listen()
  const why = cannotRun()
  if (why) sorry(why)
  let size = ''
  try {
    const settings = await (await fetch(new URL('settings.json', BASE))).json()
    const total = Object.values(settings.files).reduce((sum, f) => sum + f.bytes, 0)
    size = ` The first image loads the model, ${megabytes(total)}; your browser keeps it.`
  } catch {
    sorry("The model's files aren't part of this copy of the site: make docs puts them there.")
  }
  $('.try-privacy').textContent = `What you show it stays on your device.${size}`
}

start()
