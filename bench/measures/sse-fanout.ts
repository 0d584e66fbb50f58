/** One log and five hundred who follow it, beside a server that reads it once and writes the same text to all of them. */
import { appendFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { get, type IncomingMessage } from 'node:http'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { startBareServer } from '../anchors/bare-server.ts'
import type { Bench } from '../bench.ts'
import { fullHouse } from '../full-house.ts'
import { atMost, atMostTimesAnchor, type Measurement } from '../promise.ts'

const FOLLOWERS = 500
/** Of those: they read nothing while the others do. */
const SLOW = 50
const LINES = 2000
const PIECE = 50
const LINE = 'x'.repeat(100)

export async function measureSseFanout(bench: Bench): Promise<Measurement[]> {
  const { dir, runs, tell } = bench
  await using daemon = await fullHouse(bench, 'fanout', 1)
  const { id } = await daemon.client.get<{ id: string }>('/instances/listed-0')
  await using bare = await startBareServer(join(dir, 'fanout-bare'))
  const before = await rssMib(daemon.pid)
  const own = await followers(daemon.socket, `/instances/${id}/logs?follow=true&tail=0`)
  const other = await followers(bare.socket, '/follow')
  const ours: number[] = []
  const anchor: number[] = []
  let most = 0
  for (let run = -1; run < runs; run += 1) {
    tell(`sse_fanout: run ${run + 1} of ${runs}`)
    const owns = await delivered(own, daemon.paths.instanceLogs(id).app)
    most = Math.max(most, await rssMib(daemon.pid))
    const others = await delivered(other, bare.log)
    if (run < 0) continue
    ours.push(owns)
    anchor.push(others)
  }
  for (const { answer } of [...own, ...other]) answer.destroy()
  return [
    {
      id: 'sse_fanout',
      what: `${LINES} lines of ${LINE.length} bytes, written ${PIECE} at a time, until ${FOLLOWERS - SLOW} followers have each of them while ${SLOW} more read nothing; the anchor is a bare node:http server that writes the same text to as many`,
      unit: 'ms',
      target: atMostTimesAnchor(3),
      ours,
      anchor,
    },
    {
      id: 'sse_fanout_memory',
      what: `what the daemon's memory has grown by meanwhile, ${FOLLOWERS} connections, most of all runs`,
      unit: 'MiB',
      target: atMost(100, 'MiB'),
      ours: [Math.max(0, most - before)],
    },
  ]
}

interface Follower {
  readonly answer: IncomingMessage
  quotes: number
}

async function followers(socketPath: string, path: string): Promise<Follower[]> {
  const found: Follower[] = []
  for (let n = 0; n < FOLLOWERS; n += 1) {
    const answer = await new Promise<IncomingMessage>((resolve, reject) => {
      get({ socketPath, path, agent: false }, resolve).on('error', reject)
    })
    const follower = { answer, quotes: 0 }
    found.push(follower)
    if (n < SLOW) answer.pause()
    else answer.on('data', (chunk: Buffer) => countQuotes(follower, chunk))
  }
  return found
}

const QUOTE = 0x22

/** Two for each line, and nothing else has any. */
function countQuotes(follower: Follower, chunk: Buffer): void {
  for (let at = chunk.indexOf(QUOTE); at >= 0; at = chunk.indexOf(QUOTE, at + 1)) follower.quotes += 1
}

/** Milliseconds from the first write until the last of the quick followers has the last line. */
async function delivered(followers: readonly Follower[], log: string): Promise<number> {
  const quick = followers.slice(SLOW)
  for (const follower of quick) follower.quotes = 0
  const text = `${LINE}\n`.repeat(PIECE)
  const from = performance.now()
  for (let at = 0; at < LINES; at += PIECE) {
    appendFileSync(log, text)
    await turn()
  }
  while (quick.some(({ quotes }) => quotes < 2 * LINES)) await turn()
  return performance.now() - from
}

async function rssMib(pid: number): Promise<number> {
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/status`, 'latin1'))?.[1]
  return Number(kib) / 1024
}
