// Follows an instance: what its workload writes, and what happens to it, until it has come to rest. Survives restarts of the daemon.
//   node examples/follow.ts INSTANCE
import { Dormouse } from '@dormouse/api'

const [instance = ''] = process.argv.slice(2)
const dormouse = new Dormouse({ baseUrl: process.env.DORMOUSE_URL, token: process.env.DORMOUSE_TOKEN })
const { id } = await dormouse.call('getInstance', { params: { id: instance } })

const end = new AbortController()
const happened = (async () => {
  for await (const { kind } of dormouse.events({ subject: id, after: 0, signal: end.signal })) console.log(`* ${kind}`)
})().catch((error: unknown) => {
  if (!end.signal.aborted) throw error
})
for await (const line of dormouse.logs(id, { untilStopped: true })) console.log(`> ${line}`)
end.abort()
await happened
