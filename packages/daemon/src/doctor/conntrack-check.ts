/** Can the kernel say who is connected to guests of a bridge? Instances that sleep by themselves need it to. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { assetsIn, defaultAssetsDir } from '../config/assets.ts'
import type { Config } from '../config/config.ts'
import { readHostFacts } from '../host/host-facts.ts'
import { parseSubnet4, parseSubnet6 } from '../lib/subnet.ts'
import { silentLogger } from '../log.ts'
import { Conntrack } from '../network/conntrack.ts'
import type { Finding } from './doctor.ts'

const LIMIT_MS = 5000
/** Of the table: from here on a burst fills it, and the kernel drops what would be new connections. */
const FULL = 0.9

/** Nothing for who has no bridge: without one the network helper counts. Nor for who is not root, of whom the bridge itself is told. */
export async function checkConntrack({ network, assetsDir }: Config): Promise<Finding[]> {
  const [subnet4, subnet6] = [parseSubnet4(network.subnet), parseSubnet6(network.subnet6)]
  if (network.kind === 'user' || !readHostFacts().isRoot || !subnet4 || !subnet6) return []
  const shimPath = assetsIn(assetsDir ?? defaultAssetsDir()).shim
  // Of which is told already.
  if (!existsSync(shimPath)) return []
  // Neither the program nor its limit keeps a process going, which the daemon is glad of.
  const stay = setInterval(() => undefined, LIMIT_MS)
  using _ = { [Symbol.dispose]: () => clearInterval(stay) }
  await using conntrack = new Conntrack({ shimPath, subnet4, subnet6, log: silentLogger })
  // The question itself has the kernel load what it needs; the number is that of the gateway, which is no guest's.
  const ask = () => conntrack.inbound(1, { sources: [], ports: [] }, { signal: AbortSignal.timeout(LIMIT_MS), log: silentLogger })
  return [await examineConntrack(ask, '/proc/sys/net/netfilter')]
}

/** `ask` is answered where the kernel's connections can be followed; `dir` has its settings. */
export async function examineConntrack(ask: () => Promise<unknown>, dir: string): Promise<Finding> {
  const what = 'bridge: conntrack'
  const poor = (says: string, mend: string): Finding => ({ what, state: 'poor', says, mend })
  try {
    await ask()
  } catch (error) {
    return poor(
      `it cannot be told who is connected to guests, so none falls asleep by itself: ${reasonOf(error)}`,
      settingIn(dir, 'nf_conntrack_count') === undefined
        ? 'Load the kernel modules: modprobe -a nf_conntrack nf_conntrack_netlink'
        : 'Load the kernel module: modprobe nf_conntrack_netlink',
    )
  }
  const events = settingIn(dir, 'nf_conntrack_events')
  if (events === undefined) {
    return poor(
      'the kernel tells of no connections as they begin and end: who is connected to guests is looked up every five minutes alone',
      'Use a kernel with CONFIG_NF_CONNTRACK_EVENTS, as Debian’s have it',
    )
  }
  if (events === 0) {
    return poor(
      'the kernel is told to keep to itself which connections begin and end: who is connected to guests is looked up every five minutes alone',
      'sysctl -w net.netfilter.nf_conntrack_events=2',
    )
  }
  const [count = 0, max = 0] = ['nf_conntrack_count', 'nf_conntrack_max'].map((name) => settingIn(dir, name))
  if (max > 0 && count >= max * FULL) {
    return poor(
      `the kernel’s table of connections is nearly full (${count} of ${max}): new ones will be dropped`,
      `sysctl -w net.netfilter.nf_conntrack_max=${max * 2}`,
    )
  }
  return { what, state: 'good', says: 'the kernel tells who is connected to guests, so that they can fall asleep by themselves' }
}

function settingIn(dir: string, name: string): number | undefined {
  try {
    return Number(readFileSync(join(dir, name), 'latin1').trim())
  } catch {
    return undefined
  }
}

/** The program's own words are behind those of who asked it. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  return error.cause instanceof Error ? error.cause.message : error.message
}
