// Puts a file into an instance, and lists what is there with it.
//   node examples/copy-files.ts INSTANCE
import { AppError, Dormouse } from '@dormouse/api'

const [instance = ''] = process.argv.slice(2)
const dormouse = new Dormouse({ baseUrl: process.env.DORMOUSE_URL, token: process.env.DORMOUSE_TOKEN })

await dormouse.copyTo(instance, '/srv/example/greeting.json', JSON.stringify({ hello: 'world' }), { mode: 0o600 })
for await (const { path, kind, size } of dormouse.copyFrom(instance, '/srv/example')) console.log(`${kind} ${path} ${size}`)
console.log(new TextDecoder().decode(await dormouse.readFile(instance, '/srv/example/greeting.json')))

try {
  await dormouse.readFile(instance, '/srv/example/absent')
} catch (error) {
  if (!(error instanceof AppError)) throw error
  console.log(error.code)
}
