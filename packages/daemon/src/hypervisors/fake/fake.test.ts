import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { GuestClient } from '../../guest/guest-client.ts'
import { silentLogger } from '../../log.ts'
import { driverContract } from '../contract-suite.ts'
import type { VmSpec } from '../vm-spec.ts'
import { FakeHost, FakeHypervisor } from './fake.ts'

driverContract('fake', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'fake-'))
  const host = new FakeHost()
  let count = 0
  return {
    hypervisor: new FakeHypervisor(host),
    async makeSpec(): Promise<VmSpec> {
      const id = `vm${++count}`
      const path = (name: string) => join(dir, `${id}-${name}`)
      await writeFile(path('overlay'), '')
      return {
        id,
        runDir: path('run'),
        vcpus: 1,
        memoryMib: 128,
        disks: [{ role: 'overlay', path: path('overlay'), format: 'raw', readOnly: false }],
        logs: { app: path('app'), vmm: path('vmm'), journal: path('journal'), maxBytes: 1000 },
      }
    },
    async makeLayer({ id }) {
      const layer = join(dir, `${id}-layer-${++count}`)
      await writeFile(layer, '')
      return layer
    },
    async leftovers(spec) {
      return host
        .running()
        .filter(({ runDir }) => runDir === spec.runDir)
        .map(({ runDir }) => runDir)
    },
    async greetGuest(stream, step) {
      await using guest = await GuestClient.connect(stream, step)
      await guest.ping(step)
    },
    killVmm(handle) {
      void host.machines.get(handle.runDir)?.end({ kind: 'signaled', signal: 'SIGKILL', atMs: Date.now() })
    },
    step: (ms = 5000) => ({ signal: AbortSignal.timeout(ms), log: silentLogger }),
    async [Symbol.asyncDispose]() {
      await rm(dir, { recursive: true, force: true })
    },
  }
})
