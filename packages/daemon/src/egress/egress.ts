/**
 * The ways out of the instances that run: each that asked for it has a proxy of its own (egress-proxy.ts), from before its VM starts until
 * that is gone. A proxy outlives the daemon, as a VM does; what is to be known of it stands in its run directory, which no reboot leaves.
 *
 *   open ─► process ─► told what to do ─► its guest comes ─► rotate ─► close
 *              ╰──── it died: another, told the same ────╯
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { mkdir, rename, rm, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import type { CgroupLimits, Cgroups } from '../host/cgroups.ts'
import { killFamily } from '../host/process-identity.ts'
import { findShims } from '../hypervisors/find-shims.ts'
import type { VmExit } from '../hypervisors/hypervisor.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { Paths } from '../paths.ts'
import type { Instance, InstanceId } from '../store/instance-record.ts'
import { EgressProxy, type EgressProxyHandle, type EgressProxyPlan } from './egress-proxy.ts'
import type { ProxyOrder } from './proxy-order.ts'

/** A proxy that runs. */
export type RunningProxy = Pick<EgressProxy, 'handle' | 'ended' | 'configure' | 'kill'>

/** How proxies are started, found again and ended. */
export interface ProxyProcesses {
  start(plan: EgressProxyPlan, step: Step): Promise<RunningProxy>
  adopt(runDir: string, handle: EgressProxyHandle, step: Step): Promise<RunningProxy | undefined>
  /** Ends whatever runs in it. Repeat is harmless. */
  sweep(runDir: string): Promise<void>
}

/** A socket that listens, and is the caller's until it lets go of it. */
export interface ListeningSocket extends Disposable {
  readonly fd: number
  readonly port: number
}

/** What a proxy's network does for it. */
export interface ProxyNetwork {
  /** Where guests are, as `10.100.0.0/16`: closed to each other. */
  readonly guestSubnets: readonly string[]
  /** A socket that guests can be led to; undefined where a driver leads them to one that is the proxy's own. */
  listenForProxy(step: Step): Promise<ListeningSocket | undefined>
  /** By which the guest is told from others who reach that socket. */
  addressOf(id: string): string | undefined
  /** A guest that is attached finds its proxy at `port` from now on; undefined: it has none, and its way out is closed. Nothing where it is not attached. */
  leadToProxy(id: string, port: number | undefined, step: Step): Promise<void>
}

export interface EgressUses {
  readonly paths: Pick<Paths, 'proxiesDir' | 'proxyRunDir' | 'instanceLogs'>
  readonly network: ProxyNetwork
  readonly log: Logger
  readonly shimPath: string
  readonly logMaxBytes: number
  /** Guests reach the host at its own addresses. */
  readonly opensHost: boolean
  /** Authorities, in PEM, by whom hosts are verified beside those that Node trusts. */
  readonly trusted: readonly string[]
  readonly cgroups?: Pick<Cgroups, 'make' | 'remove'>
  /** As whom the proxy of a VM runs, by the VM's user. */
  userOf(vmUid: number): number
  /** For tests. */
  readonly processes?: ProxyProcesses
  readonly retryMs?: number
}

/** Enough for all that a guest may have under way at once, and an end for one that was taken over. What it uses is charged to no VM. */
const LIMITS: CgroupLimits = { weight: 1, cpus: 1, memoryBytes: 384 * 2 ** 20, pids: 64 }
const START_LIMIT_MS = 30_000
const CONFIGURE_LIMIT_MS = 10_000
const LEAD_LIMIT_MS = 10_000
const RETRY_FIRST_MS = 100
const RETRY_LAST_MS = 30_000
// One that ran for so long is started again at once.
const STEADY_MS = 60_000
const HANDLE = 'handle'

interface Way {
  instance: MediatedInstance
  proxy: RunningProxy | undefined
  /** Where the network leads its guest: of a proxy that runs, since a port that is let go of may be anyone's. */
  port: number | undefined
  startedAtMs: number
  failures: number
  timer: NodeJS.Timeout | undefined
}

type MediatedInstance = Pick<Instance, 'id' | 'uid' | 'env'> & Required<Pick<Instance, 'egress'>>

interface Kept extends EgressProxyHandle {
  readonly port?: number
}

export class Egress implements AsyncDisposable {
  readonly #uses: EgressUses
  readonly #processes: ProxyProcesses
  readonly #ways = new Map<InstanceId, Way>()
  /** One thing at a time is done to each. */
  readonly #turns = new Map<InstanceId, Promise<unknown>>()
  #isClosed = false

  constructor(uses: EgressUses) {
    this.#uses = uses
    this.#processes = uses.processes ?? hostProcesses
  }

  /**
   * Those of `live` that outlived the last daemon are found again and told anew what to do; all others' are ended. Once, before anything else.
   */
  async recover(live: readonly Instance[], step: Step): Promise<void> {
    const mediated = live.filter(isMediatedInstance)
    const known = new Map(mediated.map((instance) => [this.#uses.paths.proxyRunDir(instance.id), instance]))
    for (const name of namesIn(this.#uses.paths.proxiesDir)) {
      const runDir = join(this.#uses.paths.proxiesDir, name)
      if (known.has(runDir)) continue
      step.log.warn({ dir: runDir }, 'a proxy that belongs to no instance is ended')
      await this.#clear(runDir).catch((err: unknown) => step.log.error({ err, dir: runDir }, 'a proxy could not be ended'))
    }
    await Promise.all(mediated.map((instance) => this.#inTurn(instance.id, () => this.#adopt(instance, step))))
  }

  /** Starts those that the VMs of `live` are without. Their network is there. */
  async mend(live: readonly Instance[], step: Step): Promise<void> {
    await Promise.all(live.filter(isMediatedInstance).map((instance) => this.#inTurn(instance.id, () => this.#mend(instance.id, step))))
  }

  /**
   * The instance's proxy runs and knows what to do. Before its VM starts; one that it has already is ended. The port at which its network is to
   * lead it there comes back, where that is by a port. When it throws nothing is left.
   */
  open(instance: Instance, step: Step): Promise<number | undefined> {
    return this.#inTurn(instance.id, async () => {
      if (!isMediatedInstance(instance)) return undefined
      await this.#end(instance.id)
      const way = { instance, proxy: undefined, port: undefined, startedAtMs: 0, failures: 0, timer: undefined }
      this.#ways.set(instance.id, way)
      try {
        await this.#start(way, step)
        return this.portOf(instance.id)
      } catch (error) {
        await this.#end(instance.id).catch((err: unknown) => step.log.error({ err }, 'a proxy that did not start could not be ended'))
        throw error
      }
    })
  }

  /** Where the network leads it; undefined while it has no proxy, and where that is by no port. */
  portOf(id: InstanceId): number | undefined {
    return this.#ways.get(id)?.port
  }

  /** Once its guest is attached: the proxy that `open` began may have died since and have a successor, when there was no guest to lead to it. */
  lead(id: InstanceId, step: Step): Promise<void> {
    return this.#inTurn(id, async () => {
      if (this.#ways.has(id)) await this.#uses.network.leadToProxy(id, this.portOf(id), step)
    })
  }

  /** Has it a proxy, or something of one? */
  isOpen(id: InstanceId): boolean {
    return this.#ways.has(id) || existsSync(this.#uses.paths.proxyRunDir(id))
  }

  /**
   * What is on record of it now is what its proxy does from the next request on. One that cannot be told is ended, and its successor knows:
   * no value that was rotated is sent again. Nothing where it has none.
   */
  rotate(instance: Instance, { log }: Pick<Step, 'log'>): Promise<void> {
    return this.#inTurn(instance.id, async () => {
      const way = this.#ways.get(instance.id)
      if (way === undefined || !isMediatedInstance(instance)) return
      way.instance = instance
      if (way.proxy !== undefined) await this.#tell(way, way.proxy, log)
    })
  }

  /** When its VM is gone. Repeat is harmless. */
  close(id: InstanceId): Promise<void> {
    if (!this.isOpen(id)) return Promise.resolve()
    return this.#inTurn(id, () => this.#end(id))
  }

  /** Proxies go on. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    for (const { timer } of this.#ways.values()) clearTimeout(timer)
    await Promise.allSettled(this.#turns.values())
  }

  async #adopt(instance: MediatedInstance, step: Step): Promise<void> {
    const runDir = this.#uses.paths.proxyRunDir(instance.id)
    const kept = readHandle(runDir)
    const way: Way = { instance, proxy: undefined, port: undefined, startedAtMs: Date.now(), failures: 0, timer: undefined }
    this.#ways.set(instance.id, way)
    if (kept === undefined) return
    const proxy = await this.#processes.adopt(runDir, kept, step).catch((err: unknown) => {
      step.log.warn({ err, instance: instance.id }, 'the proxy of an instance could not be looked at, and is started again')
      return undefined
    })
    if (proxy === undefined) return
    this.#hold(way, proxy, kept.port)
    await this.#tell(way, proxy, step.log).catch((err: unknown) =>
      step.log.error({ err, instance: instance.id }, 'a proxy could not be ended'),
    )
  }

  async #mend(id: InstanceId, step: Step): Promise<void> {
    const way = this.#ways.get(id)
    if (way === undefined || way.proxy !== undefined) return
    step.log.warn({ instance: id }, 'the proxy of an instance is gone and is started again')
    await this.#startAgain(way, step)
  }

  async #start(way: Way, step: Step): Promise<void> {
    const { paths, network, cgroups, shimPath, logMaxBytes, userOf } = this.#uses
    const { id, uid } = way.instance
    const runDir = paths.proxyRunDir(id)
    // The directory stays: its guest's helper may stand in it.
    if (existsSync(runDir)) await this.#processes.sweep(runDir)
    await mkdir(runDir, { recursive: true, mode: 0o700 })
    using door = await network.listenForProxy(step)
    const entered = await cgroups?.make(cgroupOf(runDir), LIMITS)
    const plan = {
      shimPath,
      runDir,
      ...(uid === undefined ? {} : { user: { uid: userOf(uid), gid: userOf(uid) } }),
      log: { file: paths.instanceLogs(id).egress, maxBytes: logMaxBytes },
      ...(entered && { cgroups: entered }),
      ...(door && { guestFd: door.fd }),
    }
    const proxy = await this.#processes.start(plan, step)
    await using undo = new AsyncDisposableStack()
    undo.defer(async () => void (await proxy.kill()))
    await writeHandle(runDir, { ...proxy.handle, ...(door && { port: door.port }) })
    await proxy.configure(this.#orderOf(way.instance, door?.port), step)
    undo.move()
    this.#hold(way, proxy, door?.port)
  }

  #hold(way: Way, proxy: RunningProxy, port: number | undefined): void {
    Object.assign(way, { proxy, port, startedAtMs: Date.now() })
    void proxy.ended.then((exit) => this.#inTurn(way.instance.id, () => this.#onEnd(way, proxy, exit)))
  }

  async #onEnd(way: Way, proxy: RunningProxy, exit: VmExit): Promise<void> {
    if (way.proxy !== proxy || this.#ways.get(way.instance.id) !== way || this.#isClosed) return
    Object.assign(way, { proxy: undefined, port: undefined })
    if (Date.now() - way.startedAtMs > STEADY_MS) way.failures = 0
    this.#uses.log.warn({ instance: way.instance.id, exit }, 'the proxy of an instance has ended and is started again')
    const step = { signal: AbortSignal.timeout(LEAD_LIMIT_MS), log: this.#uses.log }
    await this.#uses.network
      .leadToProxy(way.instance.id, undefined, step)
      .catch((err: unknown) => step.log.error({ err, instance: way.instance.id }, 'the way out of an instance could not be closed yet'))
    this.#startLater(way)
  }

  #startLater(way: Way): void {
    clearTimeout(way.timer)
    if (this.#isClosed) return
    const pause = Math.min((this.#uses.retryMs ?? RETRY_FIRST_MS) * 2 ** way.failures++, RETRY_LAST_MS)
    way.timer = setTimeout(() => {
      const step = { signal: AbortSignal.timeout(START_LIMIT_MS), log: this.#uses.log }
      const again = async (): Promise<void> => {
        if (this.#ways.get(way.instance.id) === way && way.proxy === undefined && !this.#isClosed) await this.#startAgain(way, step)
      }
      void this.#inTurn(way.instance.id, again)
    }, pause)
    way.timer.unref()
  }

  /** Its guest is there already, and is led to it once more. What fails is tried again. */
  async #startAgain(way: Way, step: Step): Promise<void> {
    const { id } = way.instance
    const { network } = this.#uses
    try {
      // Also where that failed before: no one is led to a port that was let go of.
      await network.leadToProxy(id, undefined, step)
      await this.#start(way, step)
      await network.leadToProxy(id, way.port, step)
    } catch (err) {
      step.log.error({ err, instance: id }, 'the proxy of an instance could not be started: its way out is closed until it can')
      const { proxy } = way
      Object.assign(way, { proxy: undefined, port: undefined })
      await proxy?.kill().catch(() => undefined)
      this.#startLater(way)
    }
  }

  /** Rejects when it can be neither told nor ended. */
  async #tell(way: Way, proxy: RunningProxy, log: Logger): Promise<void> {
    try {
      await proxy.configure(this.#orderOf(way.instance, way.port), { signal: AbortSignal.timeout(CONFIGURE_LIMIT_MS), log })
    } catch (err) {
      log.error({ err, instance: way.instance.id }, 'the proxy of an instance cannot be told what to do, and is ended')
      // Its end is noticed, and another is started.
      await proxy.kill()
    }
  }

  /** `port` is where the proxy that is told listens; undefined: at a socket in its directory. */
  #orderOf({ id, egress, env }: MediatedInstance, port: number | undefined): ProxyOrder {
    const { network, opensHost, trusted } = this.#uses
    const { authority, credentials } = egress
    // Others reach a port of the host, and no one a socket that a helper is handed. Without an address no one is let in.
    const guestAddress = port === undefined ? undefined : (network.addressOf(id) ?? '')
    const values = Object.values(credentials).flatMap(({ source }) => (env[source] === undefined ? [] : [[source, env[source]] as const]))
    return {
      mediation: { authority, credentials, values: Object.fromEntries(values) },
      ...(guestAddress === undefined ? {} : { guestAddress }),
      closedSubnets: network.guestSubnets,
      opensHost,
      trusted,
    }
  }

  async #end(id: InstanceId): Promise<void> {
    const way = this.#ways.get(id)
    this.#ways.delete(id)
    clearTimeout(way?.timer)
    await way?.proxy?.kill()
    await this.#clear(this.#uses.paths.proxyRunDir(id))
  }

  async #clear(runDir: string): Promise<void> {
    // Every shim's directory exists, so only then is there one to be looked for.
    if (!existsSync(runDir)) return
    await this.#processes.sweep(runDir)
    await rm(runDir, { recursive: true, force: true, maxRetries: 5 })
    await this.#uses.cgroups?.remove(cgroupOf(runDir))
  }

  #inTurn<T>(id: InstanceId, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(id) ?? Promise.resolve()
    const done = before.then(work, work)
    const settled = done.catch(() => undefined)
    this.#turns.set(id, settled)
    void settled.then(() => {
      if (this.#turns.get(id) === settled) this.#turns.delete(id)
    })
    return done
  }
}

/** Beside those of VMs, which are named as their instances. */
const cgroupOf = (runDir: string): string => `egress-${basename(runDir)}`

const hostProcesses: ProxyProcesses = {
  start: (plan, step) => EgressProxy.start(plan, step),
  adopt: (runDir, handle, step) => EgressProxy.adopt(runDir, handle, step),
  sweep: async (runDir) => {
    const limit = { signal: AbortSignal.timeout(10_000) }
    for (const shim of await findShims(runDir)) await killFamily(shim, limit)
  },
}

const isMediatedInstance = <I extends Pick<Instance, 'egress'>>(instance: I): instance is I & Required<Pick<Instance, 'egress'>> =>
  instance.egress !== undefined

/** By rename: half of it is none. Without a flush, since what it speaks of does not outlive the host. */
async function writeHandle(runDir: string, kept: Kept): Promise<void> {
  const draft = join(runDir, `${HANDLE}.draft`)
  await writeFile(draft, JSON.stringify(kept), { mode: 0o600 })
  await rename(draft, join(runDir, HANDLE))
}

function readHandle(runDir: string): Kept | undefined {
  try {
    return JSON.parse(readFileSync(join(runDir, HANDLE), 'utf8')) as Kept
  } catch {
    return undefined
  }
}

function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}
