// Makes an instance of an image, runs a command in it, and takes it away again.
//   node examples/run-a-command.ts alpine
import { Dormouse } from '@dormouse/api'

const [image = 'alpine'] = process.argv.slice(2)
const dormouse = new Dormouse({ baseUrl: process.env.DORMOUSE_URL, token: process.env.DORMOUSE_TOKEN })

const { id, name } = await dormouse.call('createInstance', {
  body: { name: `example-${Date.now().toString(36)}`, image, size: '256MB', vcpus: 1, cmd: ['sleep', 'infinity'] },
})
try {
  await dormouse.waitFor(id, 'Running')
  const { exitCode, stdout } = await dormouse.run(id, ['echo', 'hello from inside'])
  console.log(`${name}: ${stdout.trim()} (exit code ${exitCode})`)
} finally {
  await dormouse.call('deleteInstance', { params: { id } })
}
