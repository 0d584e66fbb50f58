// A program that reads and writes: its input is written piece by piece while its output is read, then it is told that no more comes.
//   node examples/talk-to-a-program.ts INSTANCE
import { Dormouse } from '@dormouse/api'

const [instance = ''] = process.argv.slice(2)
const dormouse = new Dormouse({ baseUrl: process.env.DORMOUSE_URL, token: process.env.DORMOUSE_TOKEN })

using cat = await dormouse.exec(instance, ['cat'])
const writing = (async () => {
  for (const line of ['one', 'two', 'three']) await cat.write(`${line}\n`)
  cat.endInput()
})()
const decoder = new TextDecoder()
let text = ''
for await (const chunk of cat.stdout) text += decoder.decode(chunk, { stream: true })
await writing
console.log(text.trim().split('\n').join(', '))
console.log(`exit code ${(await cat.exit).exitCode}`)
