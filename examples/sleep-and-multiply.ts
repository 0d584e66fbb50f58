// Puts an instance to sleep, wakes it, and makes two forks of it while it runs.
//   node examples/sleep-and-multiply.ts INSTANCE
import { Dormouse } from '@dormouse/api'

const [instance = ''] = process.argv.slice(2)
const dormouse = new Dormouse({ baseUrl: process.env.DORMOUSE_URL, token: process.env.DORMOUSE_TOKEN })
const params = { id: instance }

console.log(`asleep: ${(await dormouse.call('standbyInstance', { params })).state}`)
await dormouse.call('restoreInstance', { params })
console.log(`awake: ${(await dormouse.waitFor(instance, 'Running')).state}`)

const forks = await Promise.all(
  ['left', 'right'].map((side) => dormouse.call('forkInstance', { params, body: { name: `${instance}-${side}`, from_running: true } })),
)
for (const { id } of forks) {
  const fork = await dormouse.waitFor(id, 'Running')
  console.log(`${fork.name}: ${(await dormouse.run(id, ['hostname'])).stdout.trim()}`)
  await dormouse.call('deleteInstance', { params: { id } })
}
