# Jobs, CronJobs and autoscalers: what they say while they run and after.

$ kubectl create job j --image=busybox:1 -- echo done
job.batch/j created
$ kubectl wait job/j --for=condition=complete --timeout=100s
job.batch/j condition met
$ kubectl get job j
NAME   STATUS     COMPLETIONS   DURATION   AGE
j      Complete   1/1           [..]
$ kubectl logs job/j
done
$ kubectl get pods -l job-name=j --no-headers
j-[..]   0/1   Completed   0     [..]
$~ kubectl get events --field-selector involvedObject.name=j,reason=Completed --no-headers
[..]Normal   Completed   job/j   Job completed
$ kubectl describe job j
Name:             j
...
Parallelism:      1
Completions:      1
Completion Mode:  NonIndexed
Suspend:          false
Backoff Limit:    6
...
Pods Statuses:    0 Active (0 Ready) / 1 Succeeded / 0 Failed
...
$ kubectl create job bad --image=busybox:1 --dry-run=client -o json -- false | kubectl patch --local -f - -p '{"spec":{"backoffLimit":0}}' -o json | kubectl create -f -
job.batch/bad created
$ kubectl wait job/bad --for=condition=failed --timeout=100s
job.batch/bad condition met
$ kubectl get job bad --no-headers
bad   Failed   0/1   [..]
$ kubectl get job bad -o jsonpath='{.status.conditions[*].type} {.status.failed} {.status.conditions[0].reason}'
FailureTarget Failed 1 BackoffLimitExceeded
$ kubectl patch job bad -p '{"spec":{"completions":2}}'
? 1
The Job "bad" is invalid: spec.completions: Invalid value: 2: field is immutable
$ kubectl delete job j bad
job.batch "j" deleted[..]
job.batch "bad" deleted[..]
$~ kubectl get pods -l job-name
No resources found[..]

# A CronJob whose time is far, and a Job of it all the same.
$ kubectl create cronjob cj --image=busybox:1 --schedule='0 0 1 1 *' -- echo hi
cronjob.batch/cj created
$ kubectl create job now --from=cronjob/cj
job.batch/now created
$ kubectl wait job/now --for=condition=complete --timeout=100s
job.batch/now condition met
$ kubectl get job now -o jsonpath='{.metadata.ownerReferences[0].kind} {.metadata.annotations}'
CronJob {"cronjob.kubernetes.io/instantiate":"manual"}
$ kubectl patch cronjob cj -p '{"spec":{"suspend":true,"timeZone":"Europe/Berlin"}}'
cronjob.batch/cj patched
$ kubectl get cronjob cj
NAME   SCHEDULE    TIMEZONE        SUSPEND   ACTIVE   LAST SCHEDULE   AGE
cj     0 0 1 1 *   Europe/Berlin   True      0        <none>          [..]
$ kubectl delete cronjob cj
cronjob.batch "cj" deleted[..]
$~ kubectl get jobs
No resources found[..]

# An autoscaler of pods that request nothing says what is missing.
$ kubectl create deployment web --image=nginx:1
deployment.apps/web created
$ kubectl autoscale deployment web --min=1 --max=3 --cpu=50%
horizontalpodautoscaler.autoscaling/web autoscaled
$~ kubectl describe hpa web | grep -E 'AbleToScale|ScalingActive'
  AbleToScale[..]True[..]SucceededGetScale[..]the HPA controller was able to get the target's current scale
  ScalingActive[..]False[..]FailedGetResourceMetric[..]the HPA was unable to compute the replica count: failed to get cpu utilization: [..]
$ kubectl get hpa web --no-headers
web   Deployment/web   cpu: <unknown>/50%[..]
$ kubectl delete hpa,deployment web
horizontalpodautoscaler.autoscaling "web" deleted[..]
deployment.apps "web" deleted[..]
