/** For tests: proxies without processes, which outlive any number of daemons' lives. */
import type { VmExit } from '../hypervisors/hypervisor.ts'
import type { ProxyProcesses, RunningProxy } from './egress.ts'
import type { EgressProxyHandle } from './egress-proxy.ts'
import type { ProxyOrder } from './proxy-order.ts'

/** One that runs, as all daemons see it. */
export interface FakeProxy {
  readonly handle: EgressProxyHandle
  /** What it does; undefined until it is told. */
  order: ProxyOrder | undefined
  /** What becomes of it when it is told something. */
  onConfigure: (() => Promise<void>) | undefined
  readonly ended: PromiseWithResolvers<VmExit>
}

export class FakeProxies implements ProxyProcesses {
  /** Those that run, by their run directories. */
  readonly running = new Map<string, FakeProxy>()
  /** What is wrong with each start; undefined: nothing. */
  onStart: ((runDir: string) => Promise<void>) | undefined
  started = 0

  async start({ runDir }: { readonly runDir: string }): Promise<RunningProxy> {
    await this.onStart?.(runDir)
    if (this.running.has(runDir)) throw new Error(`A proxy runs in ${runDir} already`)
    const identity = { pid: ++this.started, startTicks: '1' }
    const proxy: FakeProxy = {
      handle: { shim: identity, proxy: identity },
      order: undefined,
      onConfigure: undefined,
      ended: Promise.withResolvers<VmExit>(),
    }
    this.running.set(runDir, proxy)
    return this.#held(runDir, proxy)
  }

  async adopt(runDir: string, { proxy }: EgressProxyHandle): Promise<RunningProxy | undefined> {
    const found = this.running.get(runDir)
    return found?.handle.proxy.pid === proxy.pid ? this.#held(runDir, found) : undefined
  }

  async sweep(runDir: string): Promise<void> {
    this.die(runDir)
  }

  /** As by SIGKILL. */
  die(runDir: string): void {
    const proxy = this.running.get(runDir)
    this.running.delete(runDir)
    proxy?.ended.resolve({ kind: 'signaled', signal: 'SIGKILL', atMs: Date.now() })
  }

  #held(runDir: string, proxy: FakeProxy): RunningProxy {
    return {
      handle: proxy.handle,
      ended: proxy.ended.promise,
      configure: async (order) => {
        await proxy.onConfigure?.()
        if (this.running.get(runDir) !== proxy) throw new Error('It is gone')
        proxy.order = order
      },
      kill: async () => {
        if (this.running.get(runDir) === proxy) this.die(runDir)
        return proxy.ended.promise
      },
    }
  }
}
