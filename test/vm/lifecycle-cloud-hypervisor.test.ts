/** Lives of instances as VMs of Cloud Hypervisor, where its program and KVM are at hand (make test-kvm). */
import { test } from 'node:test'
import { whyNoCloudHypervisor } from '../harness/cloud-hypervisor-driver.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { inOwnNetwork, isInOwnNetwork } from '../harness/own-network.ts'
import { tellBridgedLives } from './bridged-lives.ts'

const why = isInOwnNetwork ? undefined : await whyNoCloudHypervisor(agentManners)

if (why !== undefined) test('Cloud Hypervisor on a bridge', { skip: why }, () => undefined)
else if (inOwnNetwork(import.meta.filename)) {
  tellBridgedLives({
    driver: 'cloud-hypervisor',
    features: ['disk-io-limit', 'disk-resize', 'fork', 'hotplug-disk', 'pause', 'snapshots', 'standby'],
    refused: [{ hotplug_size: '128MB' }, { gpu: { profile: 'x' } }],
  })
}
