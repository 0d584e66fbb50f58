/** Lives of instances as Firecracker's microVMs, where its program and KVM are at hand (make test-kvm). */
import { test } from 'node:test'
import { whyNoFirecracker } from '../harness/firecracker-driver.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { inOwnNetwork, isInOwnNetwork } from '../harness/own-network.ts'
import { tellBridgedLives } from './bridged-lives.ts'

const why = isInOwnNetwork ? undefined : await whyNoFirecracker(agentManners)

if (why !== undefined) test('Firecracker on a bridge', { skip: why }, () => undefined)
else if (inOwnNetwork(import.meta.filename)) {
  tellBridgedLives({
    driver: 'firecracker',
    features: ['disk-resize', 'fork', 'hotplug-disk', 'pause', 'snapshots', 'standby'],
    refused: [{ fresh_boot: true }, { hotplug_size: '128MB' }, { gpu: { profile: 'x' } }, { disk_io_bps: '10MB/s' }],
  })
}
