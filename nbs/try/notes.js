/**
 * The note inside an ONNX file: classes, normalisation, temperature, thresholds.
 *
 * ONNX Runtime for the web doesn't hand out a model's metadata, so we read the file ourselves. An
 * ONNX file is a protobuf message: a row of fields, each with a number, a kind and a value. Field
 * 14 of the model holds a key (field 1) and a value (field 2); everything else is skipped.
 */

/**
 * The fields of a message whose value is bytes.
 * @param {Uint8Array} bytes
 * @returns {Generator<[number, Uint8Array]>} number and value
 */
function* fields(bytes) {
  let at = 0
  const whole = () => {
    for (let value = 0, scale = 1; ; scale *= 128) {
      const byte = bytes[at++]
      value += (byte & 127)*scale
      if (!(byte & 128)) return value
    }
  }
  while (at < bytes.length) {
    const tag = whole(), kind = tag % 8
    if (kind === 2) {
      const length = whole()
      yield [Math.floor(tag/8), bytes.subarray(at, at += length)]
    } else if (kind === 0) whole()
    else at += kind === 1 ? 8 : 4
  }
}

/**
 * @param {Uint8Array} file
 * @returns {{config: any, metadata: any}} what grefel wrote into it
 */
export function readNotes(file) {
  const text = new TextDecoder()
  for (const [number, entry] of fields(file)) {
    if (number !== 14) continue
    const {1: key, 2: value} = Object.fromEntries(fields(entry))
    if (text.decode(key) === 'grefel') return JSON.parse(text.decode(value))
  }
  throw new Error('this ONNX file holds no grefel model')
}
