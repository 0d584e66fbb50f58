import { INSTANCE_STATES, type InstanceState } from '@dormouse/api/instance-states.ts'
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'

/** Figures for Prometheus. Label values come from our own tables alone, never from a caller. */
export class Metrics {
  readonly #registry = new Registry()
  readonly #requests: Counter<'route' | 'status'>
  readonly #seconds: Histogram<'route'>

  constructor(uses: {
    instances: { list(filter: object): readonly { readonly state: InstanceState }[] }
    host: { readonly hypervisors: readonly { readonly name: string; readonly waiting?: () => number | undefined }[] }
  }) {
    const registers = [this.#registry]
    collectDefaultMetrics({ register: this.#registry, prefix: 'dormouse_' })
    this.#requests = new Counter({
      name: 'dormouse_http_requests_total',
      help: 'Requests answered',
      labelNames: ['route', 'status'],
      registers,
    })
    this.#seconds = new Histogram({
      name: 'dormouse_http_request_seconds',
      help: 'Time to answer; streams are left out',
      labelNames: ['route'],
      buckets: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30],
      registers,
    })
    new Gauge({
      name: 'dormouse_instances',
      help: 'Instances by state',
      labelNames: ['state'],
      registers,
      collect() {
        const counts = new Map<InstanceState, number>(INSTANCE_STATES.map((state) => [state, 0]))
        for (const { state } of uses.instances.list({})) counts.set(state, (counts.get(state) ?? 0) + 1)
        for (const [state, count] of counts) this.set({ state }, count)
      },
    })
    new Gauge({
      name: 'dormouse_waiting_vms',
      help: 'VMs that wait for the next creates and starts',
      labelNames: ['hypervisor'],
      registers,
      collect() {
        for (const { name, waiting } of uses.host.hypervisors) this.set({ hypervisor: name }, waiting?.() ?? 0)
      },
    })
  }

  answered(route: string, status: number, ms: number, isStream: boolean): void {
    this.#requests.inc({ route, status: String(status) })
    if (!isStream) this.#seconds.observe({ route }, ms / 1000)
  }

  get contentType(): string {
    return this.#registry.contentType
  }

  text(): Promise<string> {
    return this.#registry.metrics()
  }
}
