/** A service in a real VM that is watched over: it sleeps, hangs, crashes, and falls while no daemon is there, and each time it is served again. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Instance } from '@dormouse/api/instances.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { InstanceStory } from './instance-story.ts'

const HTTPD = ['/bin/httpd', '-f', '-p', '80', '-h', '/srv']
const CHECK = {
  ...{ type: 'http', http: { port: 80, path: '/ready' } },
  // An emulated guest on a busy host takes its time; three in a row that are late are not the host's doing.
  ...{ interval: '500ms', timeout: '10s', start_period: '0s', failure_threshold: 2 },
}

test('a service that hangs is found unhealthy and started again, as is one that crashes; a nap is neither', {
  timeout: 600_000,
}, async () => {
  await using story = await InstanceStory.begin({ driver: 'qemu-microvm', image: { cmd: HTTPD, files: { '/srv/ready': 'yes\n' } } })
  const get = () => story.daemon.client.get<Instance>('/instances/web')
  const until = (what: string, holds: (instance: Instance) => boolean) =>
    pollUntil(
      what,
      async () => {
        const instance = await get()
        return holds(instance) ? instance : undefined
      },
      { signal: AbortSignal.timeout(240_000) },
      { everyMs: 100 },
    )
  const isHealthy = ({ health_status }: Instance): boolean => health_status?.status === 'healthy'
  await story.daemon.client.post('/instances?wait=running', {
    ...{ name: 'web', image: 'box', vcpus: 1, size: '256MB', overlay_size: '256MB' },
    ...{ health_check: CHECK, restart_policy: { policy: 'on_failure', backoff: '100ms' } },
  })
  const first = await until('it to be healthy', isHealthy)
  assert.equal(first.restart_status?.attempts, 0)

  await story.standby('web')
  assert.equal((await get()).health_status?.status, 'unknown')
  await story.restore('web')
  const woken = await until('it to be healthy after its nap', isHealthy)
  assert.deepEqual([woken.restart_status?.attempts, woken.started_at], [0, first.started_at])

  // It still takes connections, or the kernel does for it; but it answers none.
  await story.sh('web', 'kill -STOP $(pidof httpd)')
  const hung = await until('its restart', ({ restart_status }) => (restart_status?.attempts ?? 0) > 0)
  assert.equal(hung.restart_status?.last_reason, 'health_check_failed')
  const served = await until('it to be healthy again', (instance) => isHealthy(instance) && instance.started_at !== first.started_at)

  await story.sh('web', 'kill -KILL $(pidof httpd) || true').catch(() => undefined)
  const crashed = await until('its next restart', (instance) => isHealthy(instance) && instance.started_at !== served.started_at)
  assert.ok((crashed.restart_status?.attempts ?? 0) > (served.restart_status?.attempts ?? 0))

  // A crash while no daemon is there is made good by the next one.
  const vmm = await story.vmmOf(await story.get('web'))
  await story.daemon.kill()
  process.kill(vmm, 'SIGKILL')
  await story.restartDaemon()
  await until('its restart after it fell unseen', (instance) => isHealthy(instance) && instance.started_at !== crashed.started_at)

  const stopped = await story.daemon.client.post<Instance>('/instances/web/stop', {})
  assert.equal(stopped.restart_status?.blocked_reason, 'manual_stop')
  await story.assertInOrder()
  await story.remove('web')
})

test('a program of the guest is asked without a network too', { timeout: 300_000 }, async () => {
  await using story = await InstanceStory.begin({ driver: 'qemu', image: { cmd: HTTPD, files: { '/srv/ready': 'yes\n' } } })
  await story.daemon.client.post('/instances?wait=running', {
    ...{ name: 'web', image: 'box', vcpus: 1, size: '256MB', overlay_size: '256MB' },
    ...{
      network: { enabled: false },
      health_check: { ...CHECK, type: 'exec', exec: { command: ['/bin/sh', '-c', '[ -f /srv/ready ]'] } },
    },
  })
  const isHealthy = async () =>
    (await story.daemon.client.get<Instance>('/instances/web')).health_status?.status === 'healthy' ? true : undefined
  await pollUntil('it to be healthy', isHealthy, { signal: AbortSignal.timeout(120_000) }, { everyMs: 100 })
  await story.remove('web')
})
