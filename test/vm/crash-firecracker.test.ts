/** The daemon's death under Firecracker's microVMs, where its program and KVM are at hand (make test-kvm). */
import { test } from 'node:test'
import { whyNoFirecracker } from '../harness/firecracker-driver.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { inOwnNetwork, isInOwnNetwork } from '../harness/own-network.ts'
import { tellBridgedDeaths } from './bridged-deaths.ts'

const why = isInOwnNetwork ? undefined : await whyNoFirecracker(agentManners)

if (why !== undefined) test('deaths of a daemon with Firecracker', { skip: why }, () => undefined)
else if (inOwnNetwork(import.meta.filename)) tellBridgedDeaths('firecracker')
