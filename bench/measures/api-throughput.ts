/** How many requests the API answers, beside a server that sends the same bytes and does nothing else. */
import { join } from 'node:path'
import { startBareServer } from '../anchors/bare-server.ts'
import type { Bench } from '../bench.ts'
import { fullHouse } from '../full-house.ts'
import { loadOf } from '../http-load.ts'
import { atMost, atMostTimesAnchor, type Measurement } from '../promise.ts'

const COUNT = 1000
const GETS = 2000
const LISTS = 60
const AT_ONCE = 8

export async function measureApiThroughput(bench: Bench): Promise<Measurement[]> {
  const { dir, runs, tell } = bench
  await using daemon = await fullHouse(bench, 'throughput', COUNT)
  const one = Buffer.from(JSON.stringify(await daemon.client.get('/instances/listed-500')))
  const all = Buffer.from(JSON.stringify(await daemon.client.get('/instances')))
  await using bare = await startBareServer(join(dir, 'throughput-bare'), { one, all })
  const get = { path: '/instances/listed-500', requests: GETS, atOnce: AT_ONCE }
  const list = { path: '/instances', requests: LISTS, atOnce: AT_ONCE }
  const ours = { get: [] as number[], list: [] as number[], p99: [] as number[] }
  const anchor = { get: [] as number[], list: [] as number[] }
  for (let run = -1; run < runs; run += 1) {
    tell(`api_throughput: run ${run + 1} of ${runs}`)
    const own = await loadOf({ socket: daemon.socket, ...get })
    const other = await loadOf({ socket: bare.socket, ...get, path: '/one' })
    const ownList = await loadOf({ socket: daemon.socket, ...list })
    const otherList = await loadOf({ socket: bare.socket, ...list, path: '/all' })
    if (Math.abs(ownList.bytes - otherList.bytes) > all.length / 10) throw new Error('Both sides must send as much')
    if (run < 0) continue
    ours.get.push((own.totalMs * 1000) / GETS)
    ours.p99.push(...own.ms)
    ours.list.push(ownList.totalMs / LISTS)
    anchor.get.push((other.totalMs * 1000) / GETS)
    anchor.list.push(otherList.totalMs / LISTS)
  }
  const by = `${AT_ONCE} connections that ask again as soon as they are answered, ${COUNT} instances, over the unix socket`
  return [
    {
      id: 'api_throughput',
      what: `a thousand GET /instances/{id} by ${by}; the anchor is a bare node:http server that sends the same bytes`,
      unit: 'ms',
      target: atMostTimesAnchor(3),
      ours: ours.get,
      anchor: anchor.get,
    },
    {
      id: 'api_throughput_list',
      what: `a GET /instances of all of them by ${by}; the anchor sends the same bytes`,
      unit: 'ms',
      target: atMostTimesAnchor(2),
      ours: ours.list,
      anchor: anchor.list,
    },
    {
      id: 'api_p99',
      what: `the 99th of a hundred of these GET /instances/{id}, ${AT_ONCE} of which are always under way`,
      unit: 'ms',
      target: atMost(10, 'ms'),
      ours: ours.p99,
      percentile: 99,
    },
  ]
}
