import { Type } from 'typebox'
import { CreateIngressRequest, Ingress } from '../ingresses.ts'
import { listQuery, plainId } from './params.ts'
import type { Route } from './route.ts'

const ingressLater = 'Ingress is not built yet'

export const ingressRoutes = {
  listIngresses: {
    tag: 'ingresses',
    summary: 'List ingresses, newest first',
    scope: 'ingress:read',
    query: listQuery,
    status: 200,
    answer: Type.Array(Ingress),
    later: ingressLater,
  },
  createIngress: {
    tag: 'ingresses',
    summary: 'Lead a host name to an instance',
    scope: 'ingress:write',
    body: CreateIngressRequest,
    status: 201,
    answer: Ingress,
    errors: ['conflict', 'port_in_use'],
    later: ingressLater,
  },
  getIngress: {
    tag: 'ingresses',
    summary: 'Look at an ingress',
    scope: 'ingress:read',
    params: plainId,
    status: 200,
    answer: Ingress,
    errors: ['not_found', 'ambiguous'],
    later: ingressLater,
  },
  deleteIngress: {
    tag: 'ingresses',
    summary: 'Delete an ingress',
    scope: 'ingress:delete',
    params: plainId,
    status: 204,
    errors: ['not_found', 'ambiguous'],
    later: ingressLater,
  },
} as const satisfies Readonly<Record<string, Route>>
