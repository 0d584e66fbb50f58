/** A whole daemon in this process that listens on a free port; only its VMs are made up. */
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { configOf } from '../../packages/daemon/src/config/config.ts'
import { Daemon } from '../../packages/daemon/src/daemon.ts'
import { FakeHypervisor } from '../../packages/daemon/src/hypervisors/fake/fake.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { ApiClient } from './api-client.ts'
import { makeBusyboxImage } from './busybox-image.ts'
import { importImage } from './import-image.ts'

export interface FakeDaemon extends AsyncDisposable {
  readonly daemon: Daemon
  readonly url: string
  readonly socket: string
  readonly token: string
  readonly client: ApiClient
  /** Ends it and starts another on the same data and, if there was one, the same port; its VMs live on. */
  restart(): Promise<void>
}

export const FAKE_IMAGE = 'docker.io/library/sleepy:1'

/** With one image, `FAKE_IMAGE`, whose program sleeps. */
export async function startFakeDaemon(): Promise<FakeDaemon> {
  const dir = await mkdtemp(join(tmpdir(), 'dm-'))
  const socket = join(dir, 'run/dormouse.sock')
  const hypervisors = [new FakeHypervisor()]
  const start = (port: number) => {
    const settings = { DATA_DIR: join(dir, 'data'), RUN_DIR: join(dir, 'run'), LISTEN: `127.0.0.1:${port}`, HYPERVISOR: 'fake' }
    return Daemon.start({ config: configOf(new Map(Object.entries(settings))), log: silentLogger, hypervisors })
  }
  let daemon = await start(0)
  const port = daemon.tcp?.port ?? 0
  const client = new ApiClient(socket)
  await mkdir(join(dir, 'image'))
  const { path } = await makeBusyboxImage(join(dir, 'image'), { cmd: ['/bin/sleep', 'infinity'] })
  await importImage({ socket }, path, FAKE_IMAGE)
  const { token } = await client.post<{ token: string }>('/tokens', { subject: 'test' })
  return {
    get daemon() {
      return daemon
    },
    url: `http://127.0.0.1:${port}`,
    socket,
    token,
    client,
    restart: async () => {
      await daemon.stop()
      daemon = await start(port)
    },
    async [Symbol.asyncDispose]() {
      client[Symbol.dispose]()
      await daemon.stop()
      await rm(dir, { recursive: true, force: true })
    },
  }
}
