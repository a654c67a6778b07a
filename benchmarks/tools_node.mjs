// Asks one tool from npm about faces, inside the folder that holds its node_modules. What it is told
// and what it says is as in tools_python.py.
import { createRequire } from 'node:module'
import fs from 'node:fs'
import path from 'node:path'
import readline from 'node:readline'

const require = createRequire(path.resolve('package.json'))
const modules = path.resolve('node_modules')
const tf = require('@tensorflow/tfjs')
const wasm = require('@tensorflow/tfjs-backend-wasm')
wasm.setWasmPaths(path.join(modules, '@tensorflow/tfjs-backend-wasm/dist/'))
wasm.setThreadsCount(1)
await tf.setBackend('wasm')
await tf.ready()

// A grey face as three equal channels
function colour(grey, side) {
  const values = new Float32Array(3 * grey.length)
  grey.forEach((v, i) => values.fill(v, 3 * i, 3 * i + 3))
  return tf.tensor3d(values, [side, side, 3])
}

const tools = {
  // face-api: its own network of expressions, which scales to 112 px itself
  async 'face-api'() {
    const faceapi = require('@vladmandic/face-api/dist/face-api.node-wasm.js')
    await faceapi.tf.setBackend('wasm')
    await faceapi.tf.ready()
    await faceapi.nets.faceExpressionNet.loadFromDisk(path.join(modules, '@vladmandic/face-api/model'))
    const order = ['neutral', 'happy', 'sad', 'angry', 'fearful', 'disgusted', 'surprised']
    return async (grey, side) => {
      const image = colour(grey, side)
      const found = await faceapi.nets.faceExpressionNet.predictExpressions(image)
      image.dispose()
      return order.map(name => found[name])
    }
  },
  // human: its file emotion.json, fed as src/gear/emotion.ts does: 64 px, grey, -1 to 1
  async human() {
    const folder = path.join(modules, '@vladmandic/human/models')
    const { modelTopology, weightsManifest } = JSON.parse(fs.readFileSync(path.join(folder, 'emotion.json')))
    const bytes = fs.readFileSync(path.join(folder, 'emotion.bin'))
    const weightData = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)
    const weightSpecs = weightsManifest.flatMap(part => part.weights)
    const model = await tf.loadGraphModel(tf.io.fromMemory({ modelTopology, weightSpecs, weightData }))
    return async (grey, side) => {
      const answer = tf.tidy(() => {
        const small = tf.image.resizeBilinear(tf.tensor4d(Float32Array.from(grey), [1, side, side, 1]), [64, 64])
        return model.execute(small.div(255).sub(.5).mul(2))
      })
      const found = Array.from(await answer.data())
      answer.dispose()
      return found
    }
  },
}

const ask = await tools[process.argv[2]]()
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [side, faces, answers] = JSON.parse(line)
  const bytes = fs.readFileSync(faces), found = [], spent = []
  for (let at = 0; at < bytes.length; at += side * side) {
    const start = process.cpuUsage()
    found.push(...await ask(bytes.subarray(at, at + side * side), side))
    const { user, system } = process.cpuUsage(start)
    spent.push((user + system) / 1000)
  }
  fs.writeFileSync(answers, Buffer.from(Float32Array.from(found).buffer))
  console.log('answered ' + JSON.stringify(spent))
}
